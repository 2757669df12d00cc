// Package freeze is what the rooms know together of the file systems that are frozen: one list of them, one note for the agent
// that follows a killed one, and one way to thaw.
//
//	quiesce ─► Hold, Release ─┐             ┌─► the note, in memory that outlives the agent ─► ThawLeft
//	exec ────► SetWatched ────┼─► State ────┼─► Config.Changed: logs are held back
//	power ───► ThawAll ───────┘             └─► Enter, Check: what would write there waits, or is refused as busy
//
// Not here: when something is frozen, in which order, for how long, and who gets to know.
package freeze

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Config says how a State works. The zero value works.
type Config struct {
	// Note is the file in which ThawLeft of a later agent finds what is frozen. It must be in memory, since a write to a frozen
	// file system would hang. Empty: there is none.
	Note string
	// Own is the directory in which transactions write; empty: there are none.
	Own string
	// Changed is called with true before the first file system is frozen, or when one was found frozen, and with false when
	// none is any more. It must not block. Optional.
	Changed func(frozen bool)
	// ProgramFrozen is Changed for the file system that the agent's program is on, or may be. Optional.
	ProgramFrozen func(frozen bool)
}

// Hold is what one request has frozen, or is about to freeze.
type Hold struct {
	// Token is the name of the hold.
	Token string `json:"token"`
	// Systems are the file systems, in the order in which they are frozen.
	Systems []System `json:"systems"`
	// Hooks are those that have to run for the thaw, in the order in which they ran for the freeze.
	Hooks []string `json:"hooks,omitempty"`
}

// System is a file system of a Hold.
type System struct {
	// Device is its device number, as "major:minor" of mountinfo.
	Device string `json:"device"`
	// Point is where it is mounted, and Path where the agent opens it.
	Point string `json:"point"`
	Path  string `json:"path"`
	// Others are its other mount points.
	Others []string `json:"-"`
	// Program says that the agent's program is on it, or may be.
	Program bool `json:"-"`
}

// points are all its mount points.
func (s System) points() []string { return append([]string{s.Point}, s.Others...) }

// State is what is frozen. It is safe for concurrent use.
type State struct {
	config Config
	held   atomic.Int32 // how many holds there are

	mu       sync.Mutex
	note     note
	holds    []Hold
	watched  []string // mount points that a command left frozen, to be thawed by its watch
	found    bool     // something is frozen that is no hold
	told     bool     // what Changed was called with last
	locked   bool     // what ProgramFrozen was called with last
	released chan struct{}
	entries  map[*entry]bool
	release  func() // ends every hold before ThawAll
}

// entry is a change of the guest that is under way.
type entry struct {
	access builtins.Access
	done   chan struct{}
}

// New makes a State. Nothing is frozen in it.
func New(config Config) *State {
	return &State{config: config, note: note{path: config.Note}, released: make(chan struct{}), entries: map[*entry]bool{}}
}

// Hold notes file systems before they are frozen, or hooks before they run, in place of what is noted under the same
// token. From then on Enter and Check know the file systems, and the note has them. It returns what is under way and would meet
// them: each channel is closed when that is over. A file system that is in another hold is an error of cause fault.ErrBusy.
func (s *State) Hold(h Hold) (running []<-chan struct{}, err error) {
	entries, err := s.hold(h)
	if err != nil || len(entries) == 0 {
		return nil, err
	}
	meets := newMeeting([]Hold{h}) // which may have to wait, so not under the lock
	for _, e := range entries {
		if _, met := meets.access(e.access); met {
			running = append(running, e.done)
		}
	}
	return running, nil
}

// hold puts a hold in its place, and returns what is under way.
func (s *State) hold(h Hold) (entries []*entry, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, system := range h.Systems {
		if other := s.holder(system.Device); other != nil && other.Token != h.Token {
			return nil, fault.On(system.Point, fault.Wrapf(fault.ErrBusy, "it is frozen already by another request"))
		}
	}
	s.holds = append(s.without(h.Token), h)
	s.replaced()
	return slices.Collect(maps.Keys(s.entries)), nil
}

// Release ends a hold: its file systems are thawed, and its hooks have run.
func (s *State) Release(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds = s.without(token)
	s.replaced()
}

// without returns the holds but for one. The caller holds mu.
func (s *State) without(token string) []Hold {
	return slices.DeleteFunc(slices.Clone(s.holds), func(h Hold) bool { return h.Token == token })
}

// replaced reports other holds. The caller holds mu.
func (s *State) replaced() {
	s.held.Store(int32(len(s.holds)))
	close(s.released)
	s.released = make(chan struct{})
	s.changed()
}

// holder returns the hold that a device is in; nil: none. The caller holds mu.
func (s *State) holder(device string) *Hold {
	for i := range s.holds {
		if slices.ContainsFunc(s.holds[i].Systems, func(has System) bool { return has.Device == device }) {
			return &s.holds[i]
		}
	}
	return nil
}

// Holds reports whether a file system, by its device number, is in a hold.
func (s *State) Holds(device string) bool {
	if s.held.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holder(device) != nil
}

// HoldsPoint reports whether what is mounted at a point, or opened there, is in a hold.
func (s *State) HoldsPoint(point string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.holds, func(h Hold) bool {
		return slices.ContainsFunc(h.Systems, func(has System) bool {
			return has.Path == point || slices.Contains(has.points(), point)
		})
	})
}

// SetWatched notes what commands have left frozen and will be thawed by their watch, and whether anything was found
// frozen that is no hold.
func (s *State) SetWatched(points []string, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watched, s.found = points, found
	s.changed()
}

// Watched returns what commands have left frozen.
func (s *State) Watched() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.watched)
}

// changed writes the note and calls Changed. The caller holds mu.
func (s *State) changed() {
	s.note.write(noted{Commands: s.watched, Holds: s.holds})
	frozen := s.found || slices.ContainsFunc(s.holds, func(h Hold) bool { return len(h.Systems) > 0 })
	if s.config.Changed != nil && frozen != s.told {
		s.told = frozen
		s.config.Changed(frozen)
	}
	program := s.found || slices.ContainsFunc(s.holds, func(h Hold) bool {
		return slices.ContainsFunc(h.Systems, func(has System) bool { return has.Program })
	})
	if s.config.ProgramFrozen != nil && program != s.locked {
		s.locked = program
		s.config.ProgramFrozen(program)
	}
}

// OnThawAll sets what ends every hold before ThawAll thaws the rest.
func (s *State) OnThawAll(release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release = release
}

// ThawAll thaws whatever is frozen, whoever froze it. It waits for a while at most.
func (s *State) ThawAll() {
	s.mu.Lock()
	release := s.release
	s.mu.Unlock()
	if release != nil {
		release()
	}
	thawEverything()
}

// Enter begins a change of the guest that a snapshot shall have whole or not at all; leave ends it. Where it would meet what is
// held it waits for the end of that within ctx, or, without wait, fails at once. The error then has the cause fault.ErrBusy.
func (s *State) Enter(ctx context.Context, access builtins.Access, wait bool) (leave func(), err error) {
	for {
		e, released, busy := s.enter(access)
		switch {
		case busy == nil:
			return sync.OnceFunc(func() { s.leave(e) }), nil
		case busy == errChanged:
			continue
		case !wait:
			return nil, busy
		}
		select {
		case <-released:
		case <-ctx.Done():
			if cause := context.Cause(ctx); fault.Code(cause) != "timeout" {
				return nil, cause
			}
			return nil, busy
		}
	}
}

// EnterOwn is Enter for what a transaction writes to the agent's own directory. It waits.
func (s *State) EnterOwn(ctx context.Context) (leave func(), err error) {
	return s.Enter(ctx, s.withOwn(builtins.Access{}), true)
}

// TryEnterOwn is EnterOwn that does not wait.
func (s *State) TryEnterOwn() (leave func(), err error) {
	return s.Enter(context.Background(), s.withOwn(builtins.Access{}), false)
}

// EnterScript is Enter for a call of a script that changes the guest, and the journal before. It waits.
func (s *State) EnterScript(ctx context.Context, access builtins.Access) (leave func(), err error) {
	return s.Enter(ctx, s.withOwn(access), true)
}

func (s *State) withOwn(access builtins.Access) builtins.Access {
	if s.config.Own != "" {
		access.Writes = append(slices.Clip(access.Writes), s.config.Own)
	}
	return access
}

// enter registers a change, or returns what it would meet and a channel that is closed when that may have changed.
func (s *State) enter(access builtins.Access) (e *entry, released <-chan struct{}, busy error) {
	holds, released := s.snapshot()
	if busy := meet(holds, access); busy != nil {
		return nil, released, busy
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.released != released {
		return nil, nil, errChanged
	}
	e = &entry{access, make(chan struct{})}
	s.entries[e] = true
	return e, nil, nil
}

// errChanged says that the holds are no longer those that a change was held against.
var errChanged = errors.New("the holds have changed")

func (s *State) leave(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.entries, e)
	close(e.done)
}

func (s *State) snapshot() ([]Hold, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.holds), s.released
}

// Check returns an error of cause fault.ErrBusy if a request would meet what is held.
func (s *State) Check(access builtins.Access) error {
	if s.held.Load() == 0 {
		return nil
	}
	holds, _ := s.snapshot()
	return meet(holds, access)
}

// Await waits within ctx until a request would meet nothing that is held.
func (s *State) Await(ctx context.Context, access builtins.Access) error {
	if s.held.Load() == 0 {
		return nil
	}
	leave, err := s.Enter(ctx, access, true)
	if err == nil {
		leave()
	}
	return err
}

// CheckCommand returns an error of cause fault.ErrBusy while a file system is held that any program may need.
func (s *State) CheckCommand() error { return s.Check(builtins.Access{Reads: programDirs}) }

// AwaitCommands waits within ctx until CheckCommand returns nil.
func (s *State) AwaitCommands(ctx context.Context) error {
	return s.Await(ctx, builtins.Access{Reads: programDirs})
}

// programDirs are what the start of any program reads.
var programDirs = []string{"/", "/usr"}

// meet returns why a request would meet a hold; nil: it would not.
func meet(holds []Hold, access builtins.Access) error {
	if len(holds) == 0 {
		return nil
	}
	if paths, trees := wanted(access); len(paths) == 0 && len(trees) == 0 {
		return nil // such as a thaw, which is not to wait for a look at the mounts
	}
	if point, met := newMeeting(holds).access(access); met {
		return fault.Wrapf(fault.ErrBusy, "busy: frozen: the file system at %s is frozen for a snapshot", point)
	}
	return nil
}

// wanted returns the paths that a request needs, and the directories that it needs with all that is below.
func wanted(access builtins.Access) (paths, trees []string) {
	trees = slices.Clone(access.Trees)
	for _, pattern := range access.Patterns {
		dir, deep := builtins.Static(pattern)
		if paths = append(paths, dir); deep {
			trees = append(trees, dir)
		}
	}
	paths = slices.Concat(paths, access.Reads, access.Writes, trees)
	for _, sibling := range access.Siblings {
		paths = append(paths, sibling.Path)
	}
	for _, c := range access.Commands {
		paths = append(paths, programDirs...)
		if paths = append(paths, c.Dir); len(c.Argv) > 0 {
			paths = append(paths, c.Argv[0])
		}
	}
	absolute := func(list []string) (clean []string) {
		for _, path := range list {
			if fsys.IsAbs(path) && !strings.Contains(path, "\x00") {
				clean = append(clean, fsys.Clean(path))
			}
		}
		slices.Sort(clean)
		return slices.Compact(clean)
	}
	return absolute(paths), absolute(trees)
}
