package vmtest

import (
	"os/exec"
	"runtime"
	"syscall"
)

// startChild starts cmd so that the kernel kills it when this process dies, and closes exited when it has ended. The
// kernel takes the end of the starting thread for the parent's death, so that thread is kept until then.
func startChild(cmd *exec.Cmd, exited chan<- struct{}) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			// How it ended is not interesting: it is killed, or the guest turned it off.
			_ = cmd.Wait()
		}
		close(exited)
	}()
	return <-started
}
