package lua

import (
	"errors"
	"runtime"
	"runtime/metrics"
	"sync"
	"time"
)

// stopper ends a script from another goroutine. It is the interpreter's context: looked at before each instruction, it
// notes where the script was when it was first seen to be over. A pcall catches the error, but not the next one.
type stopper struct {
	once sync.Once
	done chan struct{}
	// memory is the heap limit in bytes; 0: none. Set before the script starts.
	memory uint64
	// depth is how many functions may wait for one another. Set before the script starts.
	depth int
	// Written before done is closed.
	kind, message string
	// locate tells where the interpreter is, and is called by it. Set before the script starts.
	locate func() place
	at     place
	seen   bool
}

func newStopper() *stopper { return &stopper{done: make(chan struct{}), depth: usualDepth} }

// now stops the script; the first reason counts.
func (s *stopper) now(kind, message string) {
	s.once.Do(func() { s.kind, s.message = kind, message; close(s.done) })
}

// over says whether the script was stopped.
func (s *stopper) over() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *stopper) Deadline() (time.Time, bool) { return time.Time{}, false }
func (s *stopper) Done() <-chan struct{}       { return s.done }
func (s *stopper) Value(any) any               { return nil }

// Err is called by the interpreter, on its goroutine, when it sees that it is over.
func (s *stopper) Err() error {
	if !s.over() {
		return nil
	}
	if !s.seen && s.locate != nil {
		s.seen, s.at = true, s.locate()
	}
	return errors.New(s.message)
}

// Shares of the heap limit, in eighths: what stays alive, and what there is at all, at which a script is stopped. The
// collector works against 7/8, so beyond that it has lost.
const liveShare, totalShare = 6, 7

// sampleEvery is how often the heap is looked at: a script can make 100 MB in that time, which the limit of the address
// space catches.
const sampleEvery = 5 * time.Millisecond

// sample stops the script when the heap comes near its limit. It ends with the process.
func sample(stop *stopper, limit uint64) {
	heap := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	for range time.Tick(sampleEvery) {
		metrics.Read(heap)
		live, total := heap[0].Value.Uint64(), heap[1].Value.Uint64()
		if live <= limit/8*liveShare && total > limit/8*totalShare {
			runtime.GC() // some of it may be dead
			metrics.Read(heap)
			live, total = heap[0].Value.Uint64(), heap[1].Value.Uint64()
		}
		if live > limit/8*liveShare || total > limit/8*totalShare {
			stop.now("memory", usedUp)
			return
		}
	}
}
