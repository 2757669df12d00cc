package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/update"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A watcher ends a new version that neither hears a host nor ends by itself, such as one that hangs. It is a process of its
// own, since that version may be unable to do anything, and holds the process that it watches, whatever its number is used for
// later.

const (
	// watchGrace is how much later than the new version itself its watcher gives it up.
	watchGrace = 5 * time.Second
	// watchStop is how long a version may then take to end that has given up by itself: a rollback may be under way.
	watchStop = exitAfter + watchGrace
	watched   = 3 // the descriptor of the process
)

// startWatcher starts the watcher of this process, which is about to become the new version of an update.
func startWatcher(t *pb.UpdateTrial, state string) error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("watch the new version: %w", err)
	}
	self := os.NewFile(uintptr(fd), "pidfd")
	defer self.Close()
	argv := []string{"update-watch", t.Id, state, strconv.FormatUint(t.ConfirmMs, 10), "apart"}
	p, err := startApart(self, argv)
	if err != nil {
		return fmt.Errorf("watch the new version: %w", err)
	}
	// It starts the watcher, which is then no child of the new version, and ends.
	if end, err := p.Wait(); err != nil || !end.Success() {
		return errors.Join(fmt.Errorf("watch the new version: %v", end), err)
	}
	return nil
}

// startApart starts this program in a session of its own, without output, and with a descriptor.
func startApart(process *os.File, argv []string) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	return os.StartProcess("/proc/self/exe", append([]string{os.Args[0]}, argv...), &os.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []*os.File{null, null, null, process}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
}

func watchCommand() *cobra.Command {
	return &cobra.Command{
		Use: "update-watch ID STATE MILLISECONDS [apart]", Short: "end a new version that hangs", Hidden: true,
		Args: cobra.RangeArgs(3, 4),
		RunE: func(c *cobra.Command, args []string) error {
			process := os.NewFile(watched, "pidfd")
			if len(args) == 4 {
				_, err := startApart(process, append([]string{c.Name()}, args[:3]...))
				return err
			}
			ms, err := strconv.ParseUint(args[2], 10, 32)
			if err != nil {
				return err
			}
			return watchUpdate(c.Context(), args[0], args[1], time.Duration(ms)*time.Millisecond)
		},
	}
}

// watchUpdate waits for the end of the process, or of the trial, and ends the process when its time is over.
func watchUpdate(ctx context.Context, id, state string, within time.Duration) error {
	deadline := time.Now().Add(within + watchGrace)
	for {
		if ended, err := awaitEnd(time.Second); ended || err != nil || ctx.Err() != nil {
			return err
		}
		t, err := update.Trial(state)
		if err == nil && (t == nil || t.Id != id) {
			return nil // it is confirmed
		}
		if time.Now().Before(deadline) {
			continue
		}
		noted, _ := update.Abandon(state, id, fmt.Sprintf("it neither heard a host within %v nor ended by itself", within))
		if !noted && t.GetFailed() != "" && time.Now().Before(deadline.Add(watchStop)) {
			continue
		}
		if t, err := update.Trial(state); err == nil && (t == nil || t.Failed == "") {
			return nil // it was confirmed meanwhile
		}
		return os.NewSyscallError("kill", unix.PidfdSendSignal(watched, unix.SIGKILL, nil, 0))
	}
}

// awaitEnd waits for the end of the process, for a time.
func awaitEnd(within time.Duration) (ended bool, err error) {
	poll := []unix.PollFd{{Fd: watched, Events: unix.POLLIN}}
	n, err := unix.Poll(poll, int(within.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return n > 0, os.NewSyscallError("poll", err)
}
