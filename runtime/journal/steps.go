package journal

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Bounds of what one transaction may make the agent hold or store, in bytes.
const (
	// maxIndex bounds what is in memory of all steps: their paths, and the states that calls left.
	maxIndex = 8 << 20
	// maxRecord bounds the record of one step, which is held in memory, encoded and decoded, when it is written and when
	// it is read. Older agents wrote longer ones.
	maxRecord = 8 << 20
	// maxInverse bounds the arguments of one inverse: the kernel takes no longer command line. maxInverses bounds all of
	// them.
	maxInverse, maxInverses = 2 << 20, 32 << 20
	// perObject is what a step, or an object of it, takes in the index beside its path: the state after the call, and two
	// lists.
	perObject = 350
)

// step is a record that a rollback undoes. The record itself stays in the log, so that a long transaction does not fill
// the memory: what is here is its index.
type step struct {
	number       uint64
	at           int64  // offset of the record in the log
	moved, spool string // of a take: the path of the tree, and where it goes if that is on another mount
	inverse      string // the operation of an inverse
	last         bool   // of an inverse: undone after all others
	irreversible bool
	reverted     bool
	checked      bool          // its undeclared changes are known
	after        []objectAfter // by object
}

// objectAfter is the state of an object of a step after the call.
type objectAfter struct {
	object uint32 // counts the objects of the step from 0
	state  []byte // encoded JournalState
}

// maxLatest is the size of the largest record that stays in memory until the next step, in bytes: when the call ends it is
// looked at once more.
const maxLatest = 64 << 10

// record reads the record of a step from the log.
func (t *Tx) record(s *step) (*pb.JournalRecord, error) {
	if n := len(t.steps); t.latest != nil && n > 0 && t.steps[n-1] == s {
		return t.latest, nil
	}
	record, err := t.log.read(s.at)
	if err != nil {
		return nil, fault.On("journal", err)
	}
	return record, nil
}

// stepByNumber returns a step; nil if there is none of that number. The wanted one is mostly one of the last.
func (t *Tx) stepByNumber(number uint64) *step {
	for _, s := range slices.Backward(t.steps) {
		if s.number == number {
			return s
		}
	}
	return nil
}

// findAfter returns the place of an object in s.after.
func (s *step) findAfter(object uint32) (i int, found bool) {
	return slices.BinarySearchFunc(s.after, object, func(a objectAfter, n uint32) int { return cmp.Compare(a.object, n) })
}

// setAfter notes the state that a call left of an object.
func (s *step) setAfter(object uint32, state *pb.JournalState) {
	encoded, err := proto.Marshal(state)
	if err != nil {
		return // without it a rollback takes what it finds for the script's own
	}
	i, found := s.findAfter(object)
	if !found {
		s.after = slices.Insert(s.after, i, objectAfter{object: object})
	}
	s.after[i].state = encoded
}

// stateAfter returns the state that a call left of an object; nil if it is not known.
func (s *step) stateAfter(object uint32) *pb.JournalState {
	i, found := s.findAfter(object)
	state := &pb.JournalState{}
	if !found || proto.Unmarshal(s.after[i].state, state) != nil {
		return nil
	}
	return state
}

// keptPaths returns the paths of the objects of a record, a tree as one.
func keptPaths(keep *pb.JournalKeep) []ownedPath {
	var list []ownedPath
	for _, o := range keep.GetObjects() {
		if n := len(list); n > 0 && list[n-1].tree && fsys.Within(o.Path, list[n-1].path) {
			continue
		}
		list = append(list, ownedPath{o.Path, o.Tree, o.State.Mtime != nil || o.ParentMtime != nil})
	}
	return list
}

// reserve counts the record of a step against the bounds of its transaction. An error means that it must not be written.
func (t *Tx) reserve(record *pb.JournalRecord) error {
	if n := proto.Size(record); n > maxRecord {
		return fault.Wrapf(fault.ErrTooLarge, "the step's record has %d bytes; it may have %d", n, maxRecord)
	}
	index, inverses := int64(perObject), int64(0)
	switch r := record.Record.(type) {
	case *pb.JournalRecord_Keep:
		index += t.pending.cost(r.Keep)
		for _, o := range keptPaths(r.Keep) {
			index += int64(len(o.path)) + perObject
		}
	case *pb.JournalRecord_Take:
		index += int64(2*len(r.Take.Path) + len(r.Take.Spool))
	case *pb.JournalRecord_Inverse:
		if inverses = int64(proto.Size(r.Inverse)); inverses > maxInverse {
			return fault.Wrapf(fault.ErrTooLarge, "what undoes this has %d bytes; it may have %d", inverses, maxInverse)
		}
	case *pb.JournalRecord_Irreversible: // a rollback reports it
		index += 2 * int64(proto.Size(r.Irreversible))
	}
	if t.index+index > maxIndex {
		return fault.Wrapf(fault.ErrTooLarge, "the transaction changes more objects than can be kept track of")
	}
	if t.inverses+inverses > maxInverses {
		return fault.Wrapf(fault.ErrTooLarge, "what undoes the transaction's operations has more than %d bytes", maxInverses)
	}
	t.index, t.inverses, t.latest = t.index+index, t.inverses+inverses, nil
	return nil
}
