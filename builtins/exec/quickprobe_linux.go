package exec

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
)

// Two looks are made for each command, and hardly any finds something. So a quick probe is asked first, which does one change
// after the other and answers once; only where it does not, the probe that asks each by itself is started.
//
//	look ── mount points ──► quick probe: one change after the other
//	 ◄────── one byte ───────┘
//	 └── no answer in time ──► probe: all at once, an answer for each

// quickArg is the second hidden argument of this program for a quick probe.
const quickArg = "quick"

const (
	quickTime   = 100 * time.Millisecond // what a quick probe takes at most
	maxQuick    = 16 << 10               // bytes of a request
	quickAnswer = 'y'
)

// quickProbe is a process that tries whether any of some file systems is frozen. Nil: there is none.
type quickProbe struct {
	conn *os.File // a socket that keeps messages apart
	idle *time.Timer
}

// nothingFrozen reports whether all file systems at points could be changed at once; false: one could not, or that is not
// known. The caller holds looking.
func (f *freezes) nothingFrozen(r *Room, points []string) bool {
	request := strings.Join(points, "\x00")
	if len(request) > maxQuick {
		return false
	}
	within := quickTime
	if f.quick == nil || !f.quick.idle.Stop() {
		f.quick = r.startQuickProbe()
		within += time.Second // it has to be started
	}
	p := f.quick
	if p == nil {
		return false
	}
	if !p.ask(request, within) {
		f.quick = nil
		p.end()
		return false
	}
	p.idle.Reset(probeRest)
	return true
}

// endQuick ends the quick probe that waits for the next look. The caller holds looking.
func (f *freezes) endQuick() {
	if f.quick != nil && f.quick.idle.Stop() {
		f.quick.end()
	}
	f.quick = nil
}

// startQuickProbe starts one; nil: that failed. It outlives the agent while it waits for a thaw.
func (r *Room) startQuickProbe() *quickProbe {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	theirs := os.NewFile(uintptr(fds[1]), "probe")
	defer theirs.Close()
	_, err = r.guest.Runner.SpawnOn(proc.Spec{Path: "/proc/self/exe", Argv: []string{os.Args[0], probeArg, quickArg},
		Env: []string{"GOMAXPROCS=1", "GOTRACEBACK=none"}}, theirs, nil)
	if err != nil {
		unix.Close(fds[0])
		return nil
	}
	if unix.SetNonblock(fds[0], true) != nil {
		unix.Close(fds[0])
		return nil
	}
	p := &quickProbe{conn: os.NewFile(uintptr(fds[0]), "probe")}
	p.idle = time.AfterFunc(probeRest, p.end)
	p.idle.Stop()
	return p
}

// ask sends a request, and reports whether the answer comes in time.
func (p *quickProbe) ask(request string, within time.Duration) bool {
	var answer [1]byte
	if p.conn.SetDeadline(time.Now().Add(within)) != nil {
		return false
	}
	if _, err := p.conn.Write([]byte(request)); err != nil {
		return false
	}
	n, err := p.conn.Read(answer[:])
	return err == nil && n == 1 && answer[0] == quickAnswer
}

// end lets the process end once nothing waits. It is called once.
func (p *quickProbe) end() { p.conn.Close() }

// quickMain is the main function of a quick probe.
func quickMain() {
	buf := make([]byte, maxQuick)
	for {
		n, err := unix.Read(0, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil || n == 0: // nobody asks any more
			return
		}
		for path := range strings.SplitSeq(string(buf[:n]), "\x00") {
			if fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
				tryToChange(fd)
				unix.Close(fd)
			}
		}
		for {
			if _, err = unix.Write(0, []byte{quickAnswer}); err != unix.EINTR {
				break
			}
		}
		if err != nil {
			return
		}
	}
}

// tryToChange makes a change that changes nothing, and waits while the file system of a directory is frozen: the kernel begins
// it, which waits for a thaw, before it finds that there is no such directory.
func tryToChange(dir int) { _ = unix.Unlinkat(dir, probeName, unix.AT_REMOVEDIR) }
