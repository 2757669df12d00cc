package account

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// The locks of accounts. That of lckpwdf(3), a lock of the kernel on a file, is taken by glibc's shadow-utils, by PAM and by
// systemd; it ends with its process. shadow-utils make a file beside each one that they change, too, with their pid; it stays
// where a tool was killed, and counts only as long as there is a process with that pid.
const (
	passwordLock = "/etc/.pwd.lock"
	lockSuffix   = ".lock"
)

const (
	// lockWait is how long others are waited for: as long as lckpwdf waits.
	lockWait = 15 * time.Second
	// lockPause is the time between two tries.
	lockPause = 50 * time.Millisecond
	// maxLock is the most bytes that such a file has: a number.
	maxLock = 64
	// replyTime is what is left of the caller's time to say who holds a lock.
	replyTime = 500 * time.Millisecond
)

// locks are those that a change holds.
type locks struct {
	password *os.File   // nil: not held
	paths    []string   // the files that are locks, made or to be made
	made     []*fsys.At // those that were made
	until    time.Time
}

// release releases all of them.
func (l *locks) release() (err error) {
	err = l.releaseFiles()
	if l.password != nil {
		err = errors.Join(err, fault.Cause(l.password.Close()))
		l.password = nil
	}
	return err
}

// releaseFiles removes the files that are locks.
func (l *locks) releaseFiles() (err error) {
	for _, at := range l.made {
		err = errors.Join(err, fault.On(at.Path, at.Remove()), at.Close())
	}
	l.made = nil
	return err
}

// wait waits a moment for whoever holds a lock, or says who does.
func (l *locks) wait(ctx context.Context, path string, holder int) error {
	if time.Now().After(l.until) {
		who := "another process"
		if holder > 0 {
			who = "process " + strconv.Itoa(holder)
			if name := processName(holder); name != "" {
				who += " (" + name + ")"
			}
		}
		return &fault.Error{
			Object: path, Err: fault.Wrapf(fault.ErrBusy, "%s holds the lock", who),
			Details: map[string]string{"pid": strconv.Itoa(holder)},
		}
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(lockPause):
		return nil
	}
}

// lock takes the lock of lckpwdf. In a dry run nothing is locked.
func (w *writing) lock(ctx context.Context) error {
	if w.call.DryRun != nil {
		return nil
	}
	w.locks.until = time.Now().Add(lockWait)
	if deadline, ok := ctx.Deadline(); ok && deadline.Add(-replyTime).Before(w.locks.until) {
		w.locks.until = deadline.Add(-replyTime)
	}
	at, err := w.root.At(passwordLock)
	if err != nil {
		return fault.On(passwordLock, err)
	}
	defer at.Close()
	_, there, err := isThere(w.root, passwordLock)
	if err == nil && !there {
		if err = w.call.Before(ctx, at.Path); err == nil {
			err = at.Create(nil)
		}
	}
	if err != nil {
		return fault.On(passwordLock, err)
	}
	file, err := at.OpenInPlace()
	if err != nil {
		return fault.On(passwordLock, err)
	}
	for {
		holder, err := lockFile(file)
		if err == nil {
			w.locks.password = file
			return nil
		}
		if errors.Is(err, fault.ErrBusy) {
			err = w.locks.wait(ctx, passwordLock, holder)
		}
		if err != nil {
			return errors.Join(err, fault.Cause(file.Close()))
		}
	}
}

// waitForTools waits for tools that know the files alone, before the files are read.
func (w *writing) waitForTools(ctx context.Context) error {
	var paths []string
	for _, path := range all {
		resolved, err := w.root.Resolve(path, true)
		if err != nil {
			return fault.On(path, err)
		}
		paths = append(paths, resolved+lockSuffix)
	}
	return w.waitForLocks(ctx, paths)
}

// waitForLocks waits until no living process has made one of the files that are locks.
func (w *writing) waitForLocks(ctx context.Context, paths []string) error {
	if w.call.DryRun != nil {
		return nil
	}
	for _, path := range paths {
		for {
			holder, held, err := w.holderOf(path)
			if err != nil {
				return err
			}
			if !held {
				break
			}
			if err := w.locks.wait(ctx, path, holder); err != nil {
				return err
			}
		}
	}
	return nil
}

// holderOf reads who made a file that is a lock. One of a process that is gone, or that says nothing, as a crash leaves it, is
// not held.
func (w *writing) holderOf(path string) (pid int, held bool, err error) {
	at, err := w.root.At(path)
	if err != nil {
		return 0, false, fault.On(path, err)
	}
	defer at.Close()
	text, err := at.ReadFile(maxLock)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fault.On(path, err)
	}
	pid, err = strconv.Atoi(strings.Trim(string(text), "\x00 \n"))
	return pid, err == nil && pid > 0 && pid != os.Getpid() && alive(pid), nil
}

// lockFiles makes the files that are locks, all or none: a tool may hold one and wait for another.
func (w *writing) lockFiles(ctx context.Context) error {
	for i := 0; i < len(w.locks.paths); {
		path := w.locks.paths[i]
		holder, err := w.lockPath(path)
		switch {
		case err == nil:
			i++
		case errors.Is(err, fault.ErrBusy):
			if err := errors.Join(w.locks.releaseFiles(), w.locks.wait(ctx, path, holder)); err != nil {
				return err
			}
			i = 0
		default:
			return fault.On(path, err)
		}
	}
	return nil
}

// lockPath makes a file that is a lock, in place of one that nobody holds. Where that is fault.ErrBusy holder is the process
// that holds it, and 0 where it is not known yet.
func (w *writing) lockPath(path string) (holder int, err error) {
	at, err := w.root.At(path)
	if err != nil {
		return 0, err
	}
	err = at.Create([]byte(strconv.Itoa(os.Getpid()) + "\x00"))
	if err == nil {
		w.locks.made = append(w.locks.made, at)
		return 0, nil
	}
	defer at.Close()
	if !errors.Is(err, fs.ErrExist) {
		return 0, err
	}
	holder, held, err := w.holderOf(path)
	if err == nil && !held {
		err = at.Remove() // the next try makes it
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return holder, fault.ErrBusy
}
