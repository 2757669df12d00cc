package exec

import (
	"fmt"
	"io"
	"os"
	ossignal "os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// selfPath is where this program is found, also when it was replaced.
func selfPath() (string, error) { return "/proc/self/exe", nil }

// supervisorEnv is empty: a supervisor needs nothing of the environment.
func supervisorEnv() []string { return nil }

func ignoreBrokenPipe() { ossignal.Notify(make(chan os.Signal, 1), unix.SIGPIPE) }

// lockSupervisor makes this process the supervisor of a job. wanted is closed when somebody wants the end of it.
func lockSupervisor(dir string) (lock *os.File, wanted <-chan struct{}, err error) {
	lock, err = os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		_, err = fmt.Fprintln(lock, os.Getpid())
	}
	if err != nil {
		lock.Close()
		return nil, nil, err
	}
	signals, end := make(chan os.Signal, 1), make(chan struct{})
	ossignal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	go func() { // ends with the process
		<-signals
		close(end)
	}()
	return lock, end, nil
}

func replaceFile(from, to string) error { return os.Rename(from, to) }

func readReplaced(path string) ([]byte, error) { return os.ReadFile(path) }

// supervisorAlive reports whether the supervisor of a job runs: it holds the lock.
func supervisorAlive(dir string) bool {
	file, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return false
	}
	defer file.Close()
	return unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// signalProcess sends a signal to the command of a job. end: its supervisor ends it.
func signalProcess(dir string, job *pb.Job, signal syscall.Signal, end bool) error {
	if signal != 0 {
		if err := unix.Kill(-int(job.Pid), signal); err != nil {
			return asProcessDone(err)
		}
	}
	if !end {
		return nil
	}
	file, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, 32))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 || !supervisorAlive(dir) {
		return os.ErrProcessDone
	}
	return asProcessDone(unix.Kill(pid, unix.SIGTERM))
}

func asProcessDone(err error) error {
	if err == unix.ESRCH {
		return os.ErrProcessDone
	}
	return err
}
