package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// child is a started process and its tree.
type child struct {
	cmd     *exec.Cmd
	tree    processTree
	group   *cgroup       // the control group; nil: none
	kind    string        // of the group
	pidfd   *os.File      // nil where the kernel has none
	exited  chan struct{} // closed when the process ended; it is a zombie until reap, so that its PID is not used again
	watched chan struct{} // closed when the goroutine of watch ended

	mu     sync.Mutex // held while reaping and signalling
	reaped bool
}

// start starts a command, in a control group if possible.
func (r *Runner) start(spec *Spec, stdin, stdout, stderr *os.File) (*child, error) {
	if len(spec.Argv) == 0 || spec.Argv[0] == "" {
		return nil, &StartError{Stage: "program", Err: fault.Invalid("no command")}
	}
	if spec.Limits != (Limits{}) {
		return nil, &StartError{Stage: "limits", Err: fault.Unsupported("limits of a command are held on Windows alone")}
	}
	files := [3]*os.File{stdin, stdout, stderr}
	kind := "job"
	if spec.Tied {
		kind = "tied"
	}
	group, err := r.platform.newGroup(kind)
	if err == nil {
		c, err := r.startInGroup(spec, group, kind, files)
		if err == nil {
			return c, nil
		}
		if errors.As(err, &notStartable{}) {
			return nil, err
		}
		// A group that cannot be joined (a threaded parent, a filter on clone3) shows only now. Nothing ran yet, so the
		// same start without a group is safe, and shows whether the group was the cause.
		if c, retryErr := r.startInGroup(spec, nil, kind, files); retryErr == nil {
			return c, nil
		}
		return nil, err
	}
	return r.startInGroup(spec, nil, kind, files)
}

// startInGroup starts a command in a control group; nil: with a mark instead. On an error the group is gone.
func (r *Runner) startInGroup(spec *Spec, group *cgroup, kind string, files [3]*os.File) (*child, error) {
	env := spec.Env
	if env == nil {
		env = r.LoginEnv(spec.User)
	}
	mark := ""
	if group == nil {
		mark = r.platform.mark(kind)
		env = append(env[:len(env):len(env)], mark)
	}
	attr := &syscall.SysProcAttr{Setsid: true}
	if group != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, group.fd
	}
	if spec.Tied || spec.streamed {
		attr.Pdeathsig = unix.SIGKILL
	}
	attr.Setctty = spec.terminal != nil // it is descriptor 0
	cmd := &exec.Cmd{Stdin: files[0], Stdout: files[1], Stderr: files[2], SysProcAttr: attr}
	start := r.startDirect
	if spec.Confine != nil || spec.hasRoot() {
		start = r.startByLauncher
	}
	pidfd := -1
	attr.PidFD = &pidfd
	if err := start(cmd, spec, env); err != nil {
		abandon(cmd, group, pidfd)
		return nil, err
	}
	r.platform.resetOOMScore(cmd.Process.Pid)
	c := &child{cmd: cmd, group: group, kind: kind, exited: make(chan struct{}), watched: make(chan struct{})}
	if group != nil {
		c.tree = group
	} else {
		c.tree = &sessionTree{id: cmd.Process.Pid, prefix: mark, since: startTime(cmd.Process.Pid), hung: &r.platform.hung}
	}
	c.watch(pidfd)
	return c, nil
}

// notStartable is why what was asked for cannot be started, however that is tried.
type notStartable struct{ error }

func (e notStartable) Unwrap() error { return e.error }

// abandon frees what a start that failed had. A launcher that was started leaves its group when it has ended, which may take as
// long as it hangs on a file system.
func abandon(cmd *exec.Cmd, group *cgroup, pidfd int) {
	if pidfd >= 0 {
		unix.Close(pidfd)
	}
	free := func() {
		if group != nil {
			group.close()
			group.remove()
		}
	}
	if cmd.Process == nil {
		free()
		return
	}
	go func() {
		cmd.Wait()
		free()
	}()
}

func (s *Spec) hasRoot() bool { return s.Root != "" && s.Root != "/" }

func (s *Spec) dir() string {
	if s.Dir == "" {
		return "/"
	}
	return s.Dir
}

// startDirect starts the command without the launcher.
func (r *Runner) startDirect(cmd *exec.Cmd, spec *Spec, env []string) error {
	if err := checkDir(spec.dir()); err != nil {
		return &StartError{Stage: "directory", Object: spec.dir(), Err: notStartable{fault.Cause(err)}}
	}
	path, err := spec.Path, error(nil)
	if path == "" {
		path, err = lookPath(spec.Argv[0], env, spec.dir())
	}
	if err != nil {
		return &StartError{Stage: "program", Object: spec.Argv[0], Err: notStartable{fault.Cause(err)}}
	}
	cmd.Path, cmd.Args, cmd.Dir, cmd.Env = path, spec.Argv, spec.dir(), env
	cmd.SysProcAttr.Credential = credential(spec.User)
	if err := cmd.Start(); err != nil {
		return startError(spec, path, fault.Cause(err))
	}
	return nil
}

// credential returns the identity of the child; nil if an ordinary user keeps its own, since it may not set groups.
func credential(u *User) *syscall.Credential {
	switch {
	case u == nil:
		return nil
	case os.Geteuid() != 0 && int(u.UID) == os.Geteuid() && int(u.GID) == os.Getegid():
		return nil
	}
	return &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
}

// startError finds out what a failed start failed on, for which the kernel has one errno.
func startError(spec *Spec, path string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM) && spec.User != nil && os.Geteuid() != 0:
		return &StartError{Stage: "user", Object: spec.User.Name, Err: err}
	case errors.Is(err, unix.ENOENT) && fileExists(path):
		return &StartError{Stage: "program", Object: path, Err: fault.Wrapf(fs.ErrNotExist, "interpreter does not exist")}
	case errors.Is(err, unix.EACCES) && spec.User != nil:
		return &StartError{Stage: "program", Object: path,
			Err: fault.Wrapf(fs.ErrPermission, "permission denied to user %s, for it or for directory %s", spec.User.Name, spec.dir())}
	case errors.Is(err, unix.E2BIG), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		return &StartError{Stage: "process", Object: path, Err: err}
	}
	return &StartError{Stage: "program", Object: path, Err: err}
}

// lookPath finds a program as execvp does, but with the PATH in env, and in absolute directories only.
func lookPath(program string, env []string, dir string) (string, error) {
	if strings.Contains(program, "/") {
		if !filepath.IsAbs(program) {
			program = filepath.Join(dir, program)
		}
		return program, executable(program)
	}
	found := notInPath(program)
	for _, entry := range env {
		list, ok := strings.CutPrefix(entry, "PATH=")
		if !ok {
			continue
		}
		for _, place := range filepath.SplitList(list) {
			if !filepath.IsAbs(place) {
				continue
			}
			path := filepath.Join(place, program)
			switch err := executable(path); {
			case err == nil:
				return path, nil
			case errors.Is(err, fs.ErrPermission):
				found = err
			}
		}
	}
	return "", found
}

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return unix.EISDIR
	case info.Mode()&0o111 == 0:
		return fs.ErrPermission
	}
	return nil
}

func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		return unix.ENOTDIR
	}
	return err
}

func fileExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// watch closes exited at the end of the process.
func (c *child) watch(pidfd int) {
	if pidfd < 0 {
		go func() { // an old kernel: only the end of the process ends this
			defer close(c.exited)
			for unix.Waitid(unix.P_PID, c.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
			}
		}()
		close(c.watched)
		return
	}
	unix.SetNonblock(pidfd, true) // for the runtime's poller: no thread waits
	c.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	go func() {
		defer close(c.watched)
		conn, err := c.pidfd.SyscallConn()
		if err != nil {
			return
		}
		err = conn.Read(func(fd uintptr) bool {
			ready, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return ready > 0
		})
		if err == nil {
			close(c.exited)
		}
	}()
}

func (c *child) pid() int { return c.cmd.Process.Pid }

func (c *child) hasExited() bool {
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}

// reap waits for a process that ended and returns its status.
func (c *child) reap() (code int, signal syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cmd.Wait() // ProcessState has what the error says
	c.reaped = true
	status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return 128 + int(status.Signal()), status.Signal()
	}
	return c.cmd.ProcessState.ExitCode(), 0
}

// close ends the watch and closes the files of the child.
func (c *child) close() {
	if c.pidfd != nil {
		c.pidfd.SetReadDeadline(time.Now())
		<-c.watched
		c.pidfd.Close()
	}
	if !c.reaped {
		c.cmd.Process.Release()
	}
	if c.group != nil {
		c.group.close()
	}
}

// terminate ends the tree: TERM, and after grace KILL, until nothing is left. If something is left after wait, that is an
// error of cause fault.ErrBusy.
func (c *child) terminate(grace, wait time.Duration) error {
	if c.ended() {
		return nil
	}
	signalled := map[int]bool{}
	ended := poll(grace, func() bool {
		for _, pid := range c.members() { // again each time, for new processes
			if !signalled[pid] {
				signalled[pid] = true
				unix.Kill(pid, unix.SIGTERM)
				unix.Kill(pid, unix.SIGCONT) // a stopped process does not handle SIGTERM
			}
		}
		return c.ended()
	})
	if ended {
		return nil
	}
	ended = poll(wait, func() bool {
		c.tree.kill()
		if !c.hasExited() {
			c.cmd.Process.Kill()
		}
		return c.ended()
	})
	if !ended {
		return fault.Wrapf(fault.ErrBusy, "processes %s outlive SIGKILL", strings.Trim(fmt.Sprint(c.members()), "[]"))
	}
	return nil
}

// ended reports whether the process and its tree ended. The process may have left its tree.
func (c *child) ended() bool { return c.hasExited() && c.tree.empty() }

func (c *child) members() []int {
	pids := c.tree.members()
	if !c.hasExited() {
		for _, pid := range pids {
			if pid == c.pid() {
				return pids
			}
		}
		pids = append(pids, c.pid())
	}
	return pids
}

// poll calls f until it returns true or a time has passed.
func poll(within time.Duration, f func() bool) bool {
	deadline := time.Now().Add(within)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if f() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pause)
	}
}

// removeGroup removes the control group of a command that ended. One in which something still runs is removed later.
func (r *Runner) removeGroup(c *child) {
	if c.group != nil && c.group.remove() != nil {
		r.platform.addStaleGroup(c.group.dir)
	}
}

// leaveGroup leaves the control group of a command that ended to the next one, or removes it.
func (r *Runner) leaveGroup(c *child) {
	if c.group != nil && r.platform.keepSpare(c.kind, c.group) {
		c.group = nil
		return
	}
	r.removeGroup(c)
}

// systemUser knows nobody: the accounts are in files.
func systemUser(string, string) (*User, error) { return nil, nil }

// exceeded reports whether a limit ended the command: there are none.
func (c *child) exceeded(Limits) bool { return false }

// text returns an output of the command, which is as it is.
func (c *child) text(output []byte) []byte { return output }

func systemEnv(*User) []string { return nil }
