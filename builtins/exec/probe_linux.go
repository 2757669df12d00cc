package exec

import (
	"context"
	"encoding/gob"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
)

// probeArg is the hidden first argument of this program for a probe.
const probeArg = "exec-probe"

// probeRest is how long a probe waits for the next look before it ends: as long as commands come one after the other.
const probeRest = 5 * time.Second

// probeRequest is what a probe is to do: to change the file systems of directories, or to look at paths.
type probeRequest struct {
	Paths []string
	Stat  bool
}

// probe is a process that tries whether file systems can be changed.
type probe struct {
	requests *gob.Encoder
	stdin    *os.File
	answers  chan probeAnswer // closed when the process has ended
	idle     *time.Timer      // ends it; nil: it is in use, or new
}

// probeAnswer reports one path of a request, twice at most: that it was opened, and that the change is over.
type probeAnswer struct {
	Index  int
	Opened bool
}

// mayFreeze reports whether commands of this agent may freeze a file system.
func mayFreeze() bool { return os.Geteuid() == 0 }

// freezable returns a mount point of each file system that could be frozen, by its device: those on a block device.
func freezable() map[string]string {
	mounts, below, err := freeze.Freezable()
	if err != nil {
		return nil
	}
	points := map[string]string{}
	for _, m := range mounts {
		path := below + m.Point
		if old, ok := points[m.Device]; !ok || len(path) < len(old) {
			points[m.Device] = path
		}
	}
	return points
}

// startProbe starts a probe. It outlives the agent while it waits for a thaw.
func (r *Room) startProbe() (*probe, error) {
	stdin, requests, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	answers, stdout, err := os.Pipe()
	if err != nil {
		stdin.Close()
		requests.Close()
		return nil, err
	}
	_, err = r.guest.Runner.SpawnOn(proc.Spec{Path: "/proc/self/exe", Argv: []string{os.Args[0], probeArg},
		Env: []string{"GOMAXPROCS=1", "GOTRACEBACK=none"}}, stdin, stdout)
	stdin.Close()
	stdout.Close()
	if err != nil {
		requests.Close()
		answers.Close()
		return nil, err
	}
	p := &probe{requests: gob.NewEncoder(requests), stdin: requests, answers: make(chan probeAnswer)}
	go func() {
		defer answers.Close()
		defer close(p.answers)
		for decoder := gob.NewDecoder(answers); ; {
			var a probeAnswer
			if decoder.Decode(&a) != nil {
				return
			}
			p.answers <- a
		}
	}()
	return p, nil
}

// ask has a request done. It returns the paths that did not answer in time, or until ctx ends, by index, and whether
// they were opened. The time begins with the first answer, which may come later by start: the probe may have to be started.
func (p *probe) ask(ctx context.Context, request probeRequest, within, start time.Duration) map[int]bool {
	if p.requests.Encode(request) != nil {
		return nil
	}
	waiting := map[int]bool{}
	for i := range request.Paths {
		waiting[i] = false
	}
	timer := time.NewTimer(within + start)
	defer timer.Stop()
	for first := true; len(waiting) > 0; first = false {
		select {
		case a, ok := <-p.answers:
			switch {
			case !ok: // it was killed
				return nil
			case a.Opened:
				waiting[a.Index] = true
			default:
				delete(waiting, a.Index)
			}
			if first {
				timer.Reset(within)
			}
		case <-timer.C:
			return waiting
		case <-ctx.Done():
			return waiting
		}
	}
	return nil
}

// follow reports each path that was waiting when its wait is over. It returns at the end of the process.
func (p *probe) follow(paths []string, waiting map[int]bool, over func(path string)) {
	p.end()
	for a := range p.answers {
		if _, ok := waiting[a.Index]; ok && !a.Opened {
			delete(waiting, a.Index)
			over(paths[a.Index])
		}
	}
	for i := range waiting { // the process was killed, so nothing is known
		over(paths[i])
	}
}

// rest leaves the probe to the next look, for a while.
func (p *probe) rest() {
	p.idle = time.AfterFunc(probeRest, p.end)
}

// reserve takes a probe that rests; false if it has ended meanwhile.
func (p *probe) reserve() bool { return p.idle != nil && p.idle.Stop() }

// end lets the process end once nothing waits.
func (p *probe) end() {
	p.stdin.Close()
}

// probeMain is the main function of the probe. It returns false if this process is none.
func probeMain() bool {
	if len(os.Args) < 2 || os.Args[1] != probeArg {
		return false
	}
	if len(os.Args) > 2 && os.Args[2] == quickArg {
		quickMain()
		return true
	}
	requests, answers := gob.NewDecoder(os.Stdin), gob.NewEncoder(os.Stdout)
	var mu sync.Mutex
	answer := func(a probeAnswer) {
		mu.Lock()
		defer mu.Unlock()
		if answers.Encode(a) != nil { // the agent is gone
			os.Exit(0)
		}
	}
	var work sync.WaitGroup
	defer work.Wait()
	for {
		var request probeRequest
		if requests.Decode(&request) != nil {
			return true
		}
		for i, path := range request.Paths {
			work.Go(func() {
				if request.Stat {
					answer(probeAnswer{i, true})
					_, _ = os.Lstat(path)
					_, _ = os.Stat(path)
				} else if fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
					answer(probeAnswer{i, true})
					tryToChange(fd)
					unix.Close(fd)
				}
				answer(probeAnswer{i, false})
			})
		}
	}
}

// probeName is a name that no directory has.
const probeName = ".quantix-kvm-probe.none"
