package journal

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/runtime/journal/internal/frames"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// store is what is known of the transactions that ended. Their replies are on disk, in a file each.
type store struct {
	loaded  bool
	entries []*pb.JournalEntry          // oldest first, without replies but for their status
	fresh   map[string]*pb.JournalEntry // whole, as long as they are not on disk
}

// end passes a transaction that ended on to the store, and cleans up behind it in the background.
func (j *Journal) end(t *Tx, was phase, reply *pb.RunScriptResponse, abortErr error) {
	entry := &pb.JournalEntry{Begin: t.begin, Reply: reply, Finished: now(), Phase: "done"}
	keep := was == failed
	clean := func() error { return j.clean(t, entry, keep) }
	switch {
	case was == halted:
		clean = nil
		j.degrade(errUnrecovered)
	case was == committed && len(t.after) > 0: // the next Recover does what is left
		clean = nil
	case abortErr != nil: // the journal's file is of no use; another one must say that it is over
		clean = func() error {
			if err := j.setAside(t.ID()); err != nil {
				j.degrade(fault.On("journal", err))
				return err
			}
			return j.save(entry)
		}
	}
	j.mu.Lock()
	j.current = nil
	if was != halted && reply != nil { // without one nothing ran
		j.store.add(entry)
	}
	j.mu.Unlock()
	j.work.Go(func() {
		if clean != nil {
			_ = clean() // what it did not do is done by the next Recover
		}
		if t.log != nil {
			_ = t.log.close()
		}
		j.writer <- struct{}{}
	})
}

// clean stores the entry, and then removes what was kept. Anything of it can be done again.
func (j *Journal) clean(t *Tx, entry *pb.JournalEntry, keep bool) error {
	if entry.Reply != nil {
		if err := j.save(entry); err != nil {
			return err
		}
	}
	if t.log == nil {
		return nil
	}
	if keep {
		return j.setAside(t.ID())
	}
	return t.dropAll()
}

// dropAll removes the transaction's files. What was kept goes, durably, before the journal forgets that it is over.
func (t *Tx) dropAll() error {
	j := t.journal
	for _, s := range t.steps {
		if take := s.record.GetTake(); take != nil && take.Spool != "" {
			if err := t.dropSpool(take); err != nil {
				return err
			}
		}
	}
	kept, err := os.ReadDir(t.dir("u"))
	if notThere(err) != nil {
		return fault.Cause(err)
	}
	if len(kept) > 0 {
		at, err := j.state.At("/open/" + t.ID() + "/u")
		if err != nil {
			return err
		}
		err = j.do("clean.remove", func() error { return at.RemoveAll(context.Background()) })
		if err = errors.Join(err, at.Close()); err != nil {
			return err
		}
		if err := j.do("clean.syncdir", func() error { return syncDir(t.dir()) }); err != nil {
			return err
		}
	}
	if err := t.recycle(); err != nil {
		return err
	}
	return j.do("clean.removedir", func() error { return os.RemoveAll(t.dir()) })
}

// recycle makes the journal the next one's, all zero: it held contents that not everybody may read, too.
func (t *Tx) recycle() error {
	l := t.log
	if l.err != nil || l.size > spare {
		return nil
	}
	if _, err := os.Stat(t.journal.dir("spare")); err == nil {
		return nil
	}
	if err := l.zero(0, l.end); err != nil {
		return err
	}
	return t.journal.do("clean.recycle", func() error { return os.Rename(t.dir("journal"), t.journal.dir("spare")) })
}

// setAside takes a transaction's directory out of recovery's way, for people to look at.
func (j *Journal) setAside(id string) error {
	err := j.do("aside.rename", func() error { return os.Rename(j.dir("open", id), j.dir("kept", id)) })
	for _, dir := range []string{"kept", "open"} {
		if err == nil {
			err = j.do("aside.syncdir", func() error { return syncDir(j.dir(dir)) })
		}
	}
	_ = j.lookKept() // which the next Begin does again
	return err
}

// unfinished is behind the name of a file that is being written.
const unfinished = ".new"

// save writes an entry: complete, then under its name.
func (j *Journal) save(entry *pb.JournalEntry) error {
	id := entry.Begin.TransactionId
	payload, err := proto.Marshal(entry)
	if err != nil {
		return err
	}
	chain := frames.NewChain(id)
	data := chain.Append(nil, payload)
	temp := j.dir("done", id+unfinished)
	err = j.do("save.write", func() error {
		file, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		_, err = file.Write(data)
		if err == nil {
			err = file.Sync()
		}
		return errors.Join(err, file.Close())
	})
	if err == nil {
		err = j.do("save.rename", func() error { return os.Rename(temp, j.dir("done", id)) })
	}
	if err == nil {
		err = j.do("save.syncdir", func() error { return syncDir(j.dir("done")) })
	}
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.store.fresh, id)
	return nil
}

// add puts an entry at the end.
func (s *store) add(entry *pb.JournalEntry) {
	if entry.Reply == nil {
		return
	}
	if s.fresh == nil {
		s.fresh = map[string]*pb.JournalEntry{}
	}
	id := entry.Begin.TransactionId
	s.fresh[id] = entry
	s.entries = slices.DeleteFunc(s.entries, func(e *pb.JournalEntry) bool { return e.Begin.TransactionId == id })
	s.entries = append(s.entries, bare(entry))
}

// bare is an entry without what may be large.
func bare(entry *pb.JournalEntry) *pb.JournalEntry {
	short := &pb.JournalEntry{Begin: entry.Begin, Finished: entry.Finished, Phase: entry.Phase}
	if entry.Reply != nil {
		short.Reply = &pb.RunScriptResponse{Status: entry.Reply.Status, Changes: make([]*pb.Change, len(entry.Reply.Changes))}
	}
	return short
}

// load reads what is stored, if that was not done yet. What cannot be read, is too old or of another machine goes.
func (j *Journal) load() error {
	if j.store.loaded {
		return nil
	}
	names, err := os.ReadDir(j.dir("done"))
	if err != nil {
		return fault.Cause(err)
	}
	var list []*pb.JournalEntry
	for _, name := range names {
		if strings.HasSuffix(name.Name(), unfinished) && j.store.fresh[strings.TrimSuffix(name.Name(), unfinished)] != nil {
			continue // being written
		}
		entry, err := j.read(name.Name())
		if err != nil || !j.mine(entry) {
			if err := os.Remove(j.dir("done", name.Name())); err != nil {
				return fault.Cause(err)
			}
			continue
		}
		list = append(list, bare(entry))
	}
	slices.SortStableFunc(list, func(a, b *pb.JournalEntry) int { return strings.Compare(a.Begin.TransactionId, b.Begin.TransactionId) })
	for _, e := range j.store.entries { // ended since the start
		id := e.Begin.TransactionId
		list = slices.DeleteFunc(list, func(e *pb.JournalEntry) bool { return e.Begin.TransactionId == id })
		list = append(list, e)
	}
	j.store.entries, j.store.loaded = list, true
	return nil
}

// mine says whether an entry is this machine's and not too old. A clock that jumped back makes nothing old.
func (j *Journal) mine(entry *pb.JournalEntry) bool {
	return entry.Begin.MachineId == j.config.MachineID() && time.Since(entry.Finished.AsTime()) < j.config.Expiry
}

func (j *Journal) read(id string) (*pb.JournalEntry, error) {
	data, err := os.ReadFile(j.dir("done", id))
	if err != nil {
		return nil, fault.Cause(err)
	}
	payload, err := frames.One(id, data)
	if err != nil {
		return nil, fault.Wrapf(fault.ErrCorrupt, "%v", err)
	}
	entry := &pb.JournalEntry{}
	if err := proto.Unmarshal(payload, entry); err != nil {
		return nil, fault.Wrapf(fault.ErrCorrupt, "%v", err)
	}
	return entry, nil
}

// trim drops what is too old or too much.
func (j *Journal) trim() {
	over := len(j.store.entries) - j.config.Entries
	j.store.entries = slices.DeleteFunc(j.store.entries, func(e *pb.JournalEntry) bool {
		over--
		if over < 0 && j.mine(e) {
			return false
		}
		delete(j.store.fresh, e.Begin.TransactionId)
		_ = os.Remove(j.dir("done", e.Begin.TransactionId)) // else it goes at the next start
		return true
	})
}

// Ref names a stored transaction: all fields that are set must be its own.
type Ref struct{ ID, Key, MessageID string }

func (r Ref) is(b *pb.JournalBegin) bool {
	return r != Ref{} && (r.ID == "" || r.ID == b.TransactionId) && (r.Key == "" || r.Key == b.Key) && (r.MessageID == "" || r.MessageID == b.MessageId)
}

// Stored finds the latest transaction that ended and is meant by ref, with its reply. The error is fs.ErrNotExist if there
// is none.
func (j *Journal) Stored(ref Ref) (*pb.JournalEntry, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.load(); err != nil {
		return nil, err
	}
	j.trim()
	for _, e := range slices.Backward(j.store.entries) {
		if !ref.is(e.Begin) {
			continue
		}
		if whole, ok := j.store.fresh[e.Begin.TransactionId]; ok {
			return proto.Clone(whole).(*pb.JournalEntry), nil
		}
		return j.read(e.Begin.TransactionId)
	}
	return nil, fs.ErrNotExist
}

// List gives the transactions, newest first, the open one among them: at most n of those that follow the one named after,
// or from the newest on where it is empty. next is empty at the end.
func (j *Journal) List(after string, n int) (list []*pb.TransactionInfo, next string, err error) {
	j.mu.Lock()
	t := j.current
	if err := j.load(); err != nil {
		j.mu.Unlock()
		return nil, "", err
	}
	j.trim()
	entries := slices.Clone(j.store.entries)
	j.mu.Unlock()
	slices.SortStableFunc(entries, func(a, b *pb.JournalEntry) int { return strings.Compare(a.Begin.TransactionId, b.Begin.TransactionId) })
	if t != nil && after == "" {
		list = append(list, t.info())
	}
	for _, e := range slices.Backward(entries) {
		if after != "" && e.Begin.TransactionId >= after {
			continue
		}
		if len(list) >= n {
			return list, list[len(list)-1].TransactionId, nil
		}
		list = append(list, info(e.Begin, e))
	}
	return list, "", nil
}

func info(b *pb.JournalBegin, e *pb.JournalEntry) *pb.TransactionInfo {
	return &pb.TransactionInfo{
		TransactionId: b.TransactionId, Status: e.GetReply().GetStatus(), Script: b.Script, Key: b.Key, MessageId: b.MessageId,
		Started: b.Started, Finished: e.GetFinished(), Phase: e.GetPhase(), Changes: uint32(len(e.GetReply().GetChanges())),
	}
}

func (t *Tx) info() *pb.TransactionInfo {
	t.seen.mu.Lock()
	defer t.seen.mu.Unlock()
	i := info(t.begin, nil)
	i.Phase = map[phase]string{running: "running", awaiting: "awaiting_confirm", committed: "done"}[t.seen.phase]
	if i.Phase == "" {
		i.Phase = "rolling_back"
	}
	i.JournalBytes = uint64(t.seen.bytes)
	return i
}
