package journal

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A file system may be mounted later than the journal is recovered, or not where it was. What is at a path then says
// nothing of the objects of a step: a bare mount point looks as if all had been removed. So a step knows the mounts that its
// objects are on, and is undone only where they are there.

// mountList is the mounts that some entries are on.
type mountList struct {
	cache fsys.MountCache
	list  []fsys.Mount
}

// add adds the mounts of what is at an entry, and of the directory that it is in.
func (l *mountList) add(at *fsys.At) error {
	list, err := l.cache.Of(at)
	for _, m := range list {
		if !slices.ContainsFunc(l.list, func(n fsys.Mount) bool { return n.Number == m.Number }) {
			l.list = append(l.list, m)
		}
	}
	return err
}

// record returns the mounts as a step's record has them.
func (l *mountList) record(j *Journal) ([]*pb.JournalMount, error) {
	if len(l.list) == 0 {
		return nil, nil
	}
	own, err := j.ownMount()
	if err != nil {
		return nil, err
	}
	var list []*pb.JournalMount
	for _, m := range l.list {
		list = append(list, &pb.JournalMount{
			Point: m.Point, Dir: m.Dir, Type: m.Type, Source: m.Source, Id: m.ID,
			Own: m.Number == own, Volatile: m.Volatile, Device: m.Device,
		})
	}
	return list, nil
}

// ownMount returns the number of the mount that the journal's directory is on.
func (j *Journal) ownMount() (uint64, error) {
	at, err := j.state.At("/")
	if err != nil {
		return 0, err
	}
	defer at.Close()
	var cache fsys.MountCache
	list, err := cache.Of(at)
	if err != nil || len(list) == 0 {
		return 0, err
	}
	return list[0].Number, nil
}

// mountCheck compares the mounts of a step with those of now.
type mountCheck struct {
	journal  *Journal
	was      []*pb.JournalMount
	sameBoot bool
	own      uint64
	giveUp   bool // what is not mounted now is not waited for
	now      fsys.MountCache
	failed   error // why what is mounted at its first use is not mounted; nil: there is no such file system, or it is
}

// newMountCheck takes the record of a step. It returns nil for that of an agent that recorded no mounts.
func (t *Tx) newMountCheck(record *pb.JournalRecord) (*mountCheck, error) {
	if len(record.GetMounts()) == 0 {
		return nil, nil
	}
	own, err := t.journal.ownMount()
	return &mountCheck{
		journal: t.journal, was: record.Mounts, sameBoot: t.begin.BootId == t.journal.config.BootID(), own: own,
		giveUp: t.abandoned,
	}, err
}

// checkMounts takes the record of a step. It returns a waitingError if a mount must come, or come back, before the step can
// be undone.
func (t *Tx) checkMounts(record *pb.JournalRecord) error {
	c, err := t.newMountCheck(record)
	if c == nil || err != nil {
		return err
	}
	dirs := map[string]bool{"": true} // that were checked
	for _, path := range stepPaths(record) {
		if up := parent(path); !dirs[up] {
			dirs[up] = true
			if err := c.check(up); err != nil {
				return err
			}
		}
		if err := c.check(path); err != nil {
			return err
		}
	}
	return nil
}

// stepPaths returns the paths that undoing a step changes or reads.
func stepPaths(record *pb.JournalRecord) []string {
	var list []string
	for _, o := range record.GetKeep().GetObjects() {
		list = append(list, o.Path)
	}
	for _, b := range record.GetKeep().GetBeside() {
		list = append(list, b.Path)
	}
	list = append(list, objectPaths(inverseObject(record.GetInverse()))...)
	if take := record.GetTake(); take != nil {
		list = append(list, take.Path)
		if take.Spool != "" {
			list = append(list, take.Spool)
		}
	}
	return list
}

// check returns a waitingError if a path is not on the mount that it was on.
func (c *mountCheck) check(path string) error {
	was, now, err := c.replaced(path)
	if was == nil || err != nil {
		return err
	}
	if ended, err := c.ended(was); ended || err != nil {
		return err
	}
	wait := &waitingError{fromMount(was).String()}
	if now.Type == autofs && c.failed != nil {
		wait.mount += fmt.Sprintf(", which is mounted at its first use: %v", c.failed)
	} else if now.Point != was.Point && fsys.Within(now.Point, was.Point) { // mounted on a directory that was an ordinary one
		wait.mount += fmt.Sprintf(", which %s hides", now)
	}
	return wait
}

// replaced returns the mount that a path was on, where it is on another one now; else nil.
func (c *mountCheck) replaced(path string) (was *pb.JournalMount, now fsys.Mount, err error) {
	if was = longestMount(c.was, path); was == nil {
		return nil, now, nil
	}
	now, waits, err := c.automount(was, path)
	if err == nil && !waits {
		now, err = c.current(path)
	}
	same := fromMount(was).Same(now) && (!was.Volatile || c.sameBoot && was.Device == now.Device)
	if err != nil || same || was.Own && now.Number == c.own {
		return nil, now, err
	}
	return was, now, nil
}

// autofs is the type of the file systems that have something mounted on them, or on a directory of them, at its first use.
const autofs = "autofs"

// automount has a path's mount mounted where that waits for its first use. If it waits still it returns the autofs mount:
// nobody may go on the path then, since that takes as long as the mount does, which may be for ever.
func (c *mountCheck) automount(was *pb.JournalMount, path string) (now fsys.Mount, waits bool, err error) {
	root := c.journal.config.Root
	if now, waits, err = root.Automount(path); !waits || err != nil || was.Type == autofs {
		return now, waits && was.Type != autofs, err
	}
	if c.giveUp || was.Volatile || !fsys.Within(was.Point, now.Point) { // or what would be mounted is not what there was
		return now, true, nil
	}
	if c.failed = c.journal.trigger(was.Point); c.failed != nil {
		return now, true, nil
	}
	return root.Automount(path)
}

// trigger has a mount mounted that waits for its first use, and waits for that a little. Where it takes longer the next call
// goes on to wait.
func (j *Journal) trigger(point string) error {
	if j.early.Load() { // what mounts it may wait for this
		return errDeferred
	}
	j.mu.Lock()
	ended, begun := j.triggered[point]
	if !begun {
		ended = make(chan error, 1)
		j.triggered[point] = ended
		go func() { ended <- fault.Cause(j.config.Root.TriggerAutomount(point)) }()
	}
	j.mu.Unlock()
	timer := time.NewTimer(j.config.AutomountWait)
	defer timer.Stop()
	select {
	case err := <-ended:
		j.mu.Lock()
		delete(j.triggered, point)
		j.mu.Unlock()
		return err
	case <-timer.C:
		return fault.Wrapf(fault.ErrBusy, "that does not end within %v", j.config.AutomountWait)
	}
}

// current returns the mount that a path is on, or would be.
func (c *mountCheck) current(path string) (fsys.Mount, error) {
	at, err := c.journal.config.Root.Exact(path)
	for err != nil && parent(path) != "" { // the directories above it are not there
		path = parent(path)
		at, err = c.journal.config.Root.Exact(path)
	}
	if err != nil {
		return fsys.Mount{}, err
	}
	list, err := c.now.Of(at)
	if err = errors.Join(err, at.Close()); err != nil || len(list) == 0 {
		return fsys.Mount{}, err
	}
	return list[len(list)-1], nil
}

// ended reports whether a file system is gone for good, with all that a step changed on it.
func (c *mountCheck) ended(was *pb.JournalMount) (bool, error) {
	if !was.Volatile || !c.sameBoot {
		return was.Volatile, nil
	}
	mounted, err := fsys.IsMounted(was.Device)
	return !mounted, err
}

// ended returns a function that reports whether a path of a step, which waits for no mount, was on a file system that is
// gone for good: then there is nothing to restore.
func (t *Tx) ended(record *pb.JournalRecord) func(path string) bool {
	c, err := t.newMountCheck(record)
	volatile := slices.ContainsFunc(record.Mounts, func(m *pb.JournalMount) bool { return m.Volatile })
	return func(path string) bool {
		if !volatile || err != nil {
			return false
		}
		was, _, err := c.replaced(path)
		return was != nil && err == nil
	}
}

// longestMount returns the mount of those that a path is on.
func longestMount(mounts []*pb.JournalMount, path string) (longest *pb.JournalMount) {
	for _, m := range mounts {
		if fsys.Within(path, m.Point) && (longest == nil || len(m.Point) > len(longest.Point)) {
			longest = m
		}
	}
	return longest
}

func fromMount(m *pb.JournalMount) fsys.Mount {
	return fsys.Mount{
		Point: m.Point, Dir: m.Dir, Type: m.Type, Source: m.Source, ID: m.Id, Volatile: m.Volatile, Device: m.Device,
	}
}

// waitingError is why a step cannot be undone yet.
type waitingError struct{ mount string }

func (e *waitingError) Error() string { return "waiting for " + e.mount }

func (e *waitingError) Unwrap() error { return fault.ErrBusy }
