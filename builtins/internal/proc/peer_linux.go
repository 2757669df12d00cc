package proc

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Peer is this program once more, as another user, with one channel to it.
type Peer struct {
	// Channel is the agent's end of a stream socket, whose other end is descriptor 3 of the process. Closing it asks the
	// process to end. It is the caller's.
	Channel *os.File
	// PID is the process.
	PID int
	// Done is closed when the process has ended; How then says how.
	Done <-chan struct{}

	process *os.Process
	how     string
}

// PeerSpec says how a Peer is started.
type PeerSpec struct {
	// Args are the arguments after the program's name.
	Args []string
	// Env is the whole environment.
	Env []string
	// User is the identity to run as; nil: the agent's.
	User *User
}

// peerBuffer is how much one side of a channel may write before the other one reads, in bytes.
const peerBuffer = 4 << 20

// StartPeer starts this program once more. It has the user's rights alone: neither capabilities nor groups of the agent, no
// descriptor but the channel, and "/" as its directory. It is killed when the agent ends, and its score for the OOM killer is
// that of an ordinary process. The error is a *StartError.
func StartPeer(spec PeerSpec) (*Peer, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, &StartError{Stage: "process", Err: err}
	}
	theirs := os.NewFile(uintptr(fds[1]), "agent")
	defer theirs.Close()
	if err := unix.SetNonblock(fds[0], true); err != nil { // so that a Close ends a Read
		unix.Close(fds[0])
		return nil, &StartError{Stage: "process", Err: err}
	}
	for _, fd := range fds { // what is large passes in fewer pieces; where it cannot be had, in more
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, peerBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, peerBuffer)
		}
	}
	ours := os.NewFile(uintptr(fds[0]), "helper")
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", // the running program, also where its file was replaced
		Args: append([]string{os.Args[0]}, spec.Args...),
		Env:  spec.Env, Dir: "/", ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL, Credential: credential(spec.User)},
	}
	done := make(chan struct{})
	p := &Peer{Channel: ours, Done: done}
	started := make(chan error)
	go func() {
		// The signal at the parent's death is sent when the thread that began the process ends, so this one is kept.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.process, p.PID = cmd.Process, cmd.Process.Pid
			_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.PID), []byte("0"), 0) // fails if it has ended already
		}
		started <- err
		if err != nil {
			return
		}
		cmd.Wait() //nolint:errcheck // ProcessState has what the error says
		p.how = cmd.ProcessState.String()
		close(done)
	}()
	if err := <-started; err != nil {
		ours.Close()
		object := ""
		if spec.User != nil {
			object = spec.User.Name
		}
		return nil, &StartError{Stage: "user", Object: object, Err: fault.Cause(err)}
	}
	return p, nil
}

// How says how the process ended, once Done is closed.
func (p *Peer) How() string { return p.how }

// Kill kills the process, if it runs still.
func (p *Peer) Kill() { p.process.Kill() } //nolint:errcheck // it may have ended
