package file

import (
	"errors"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

type uploadKey struct{ owner, path string }

// uploads are those under way, and for a while those that ended, for a last chunk that is sent again. The lock of an upload may
// be held when the lock of the list is taken, and not the other way about.
type uploads struct {
	root *fsys.Root
	idle time.Duration
	max  int

	mu      sync.Mutex
	open    map[uploadKey]*upload
	closed  bool
	expires sync.WaitGroup // timers that have fired and are at work
}

// get finds the upload that a chunk belongs to. The first chunk of one begins a new one in its stead.
func (s *uploads) get(key uploadKey, c chunk, in *pb.FileWriteRequest) (*upload, error) {
	old, err := s.find(key)
	if err != nil {
		return nil, err
	}
	if c.number != 0 || c.offset != 0 || old != nil && old.repeated(c, in) {
		if old == nil {
			return nil, errNoUpload
		}
		return old, nil
	}
	u, old, err := s.add(key)
	if err != nil {
		return nil, err
	}
	return u, s.end(old)
}

func (s *uploads) find(key uploadKey) (*upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errStopping
	}
	return s.open[key], nil
}

var errStopping = fault.Wrapf(fault.ErrBusy, "the agent is about to stop")

// add puts a new upload into the list, and gives the one that it replaces, if any.
func (s *uploads) add(key uploadKey) (u, old *upload, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, errStopping
	}
	if err := s.room(key); err != nil {
		return nil, nil, err
	}
	u, old = &upload{}, s.open[key]
	u.timer = time.AfterFunc(s.idle, func() { s.expire(key, u) })
	s.open[key] = u
	return u, old, nil
}

// repeated reports whether a first chunk is one that was sent again: of an upload with a name always, for each has its own. Of
// another one a finished upload is written again, which does no harm, but for one that appends: there the request distinguishes
// a second try from a second wish.
func (u *upload) repeated(c chunk, in *pb.FileWriteRequest) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.dropped || u.append != in.Append || !u.taken(c):
		return false
	case in.Upload != "":
		return true
	case u.count != 1:
		return false
	}
	return !u.finished || in.Append && c.id != "" && c.id == u.recent[0].id
}

// room makes place for one more. Those that ended are only remembered, so they go first.
func (s *uploads) room(key uploadKey) error {
	if _, ok := s.open[key]; ok || len(s.open) < s.max {
		return nil
	}
	for k, u := range s.open {
		if u.mu.TryLock() {
			if u.finished {
				u.timer.Stop()
				delete(s.open, k)
			}
			u.mu.Unlock()
		}
	}
	if len(s.open) >= s.max {
		return fault.Wrapf(fault.ErrBusy, "%d uploads are under way", len(s.open))
	}
	return nil
}

// touch gives an upload its time anew.
func (s *uploads) touch(key uploadKey, u *upload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[key] == u {
		u.timer.Reset(s.idle)
	}
}

// forget takes an upload from the list.
func (s *uploads) forget(key uploadKey, u *upload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u.timer.Stop()
	if s.open[key] == u {
		delete(s.open, key)
	}
}

// expire ends an upload whose time is over.
func (s *uploads) expire(key uploadKey, u *upload) {
	s.mu.Lock()
	if s.closed || s.open[key] != u {
		s.mu.Unlock()
		return
	}
	delete(s.open, key)
	s.expires.Add(1)
	s.mu.Unlock()
	defer s.expires.Done()
	_ = s.end(u) // there is nobody to report to; what stays is swept by a later upload beside it
}

func (s *uploads) end(u *upload) error {
	if u == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.timer.Stop()
	return u.discard(s.root)
}

// left ends the uploads of a session, and gives those with a name that it was sending the time of an orphan.
func (s *uploads) left(session string) {
	s.mu.Lock()
	var gone []*upload
	for key, u := range s.open {
		switch {
		case key.owner == session:
			gone = append(gone, u)
			delete(s.open, key)
		case u.sentBy(session):
			u.timer.Reset(min(s.idle, orphanTime))
		}
	}
	s.expires.Add(len(gone))
	s.mu.Unlock()
	for _, u := range gone {
		_ = s.end(u)
		s.expires.Done()
	}
}

// orphanTime is how long an upload with a name waits for its host to come back.
const orphanTime = 90 * time.Second

// sentBy reports whether a session brought the last chunk. One that is at work is not waited for: its chunk is not the last.
func (u *upload) sentBy(session string) bool {
	if !u.mu.TryLock() {
		return false
	}
	defer u.mu.Unlock()
	return u.session == session
}

// close ends all uploads and waits for those that end by themselves.
func (s *uploads) close() (err error) {
	s.mu.Lock()
	s.closed = true
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for _, u := range open {
		err = errors.Join(err, s.end(u))
	}
	s.expires.Wait()
	return err
}
