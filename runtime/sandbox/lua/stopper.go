package lua

import (
	"errors"
	"sync"
	"time"
)

// stopper ends a script from another goroutine. It is the interpreter's context, checked before each instruction, and
// notes where the script was when the interpreter first saw the end. A pcall catches the error, but the next
// instruction raises it again.
type stopper struct {
	once sync.Once
	done chan struct{}
	// memory is the heap limit in bytes; 0: none. Set before the script starts.
	memory uint64
	// depth is how many calls of functions may be nested. Set before the script starts.
	depth int
	// kind and message are the cause. Written before done is closed.
	kind, message string
	// position returns where the interpreter is; only the interpreter's goroutine calls it. Set before the script
	// starts.
	position  func() position
	stoppedAt position
	located   bool
}

func newStopper() *stopper { return &stopper{done: make(chan struct{}), depth: defaultDepth} }

// stop stops the script. The first cause counts.
func (s *stopper) stop(kind, message string) {
	s.once.Do(func() { s.kind, s.message = kind, message; close(s.done) })
}

// stopped reports whether the script was stopped.
func (s *stopper) stopped() bool {
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

// Err returns the error of a stopped script. The interpreter calls it, on its own goroutine, when it sees that the
// script was stopped.
func (s *stopper) Err() error {
	if !s.stopped() {
		return nil
	}
	if !s.located && s.position != nil {
		s.located, s.stoppedAt = true, s.position()
	}
	return errors.New(s.message)
}
