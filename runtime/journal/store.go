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

// store is the index of the transactions that ended. Their replies are on disk, in a file each.
type store struct {
	loaded  bool
	entries []*pb.JournalEntry          // oldest first; of a reply only the status and the number of changes
	unsaved map[string]*pb.JournalEntry // complete entries that are not on disk yet
}

// finishTx adds a transaction that ended to the store, and removes its files in the background. last is the phase that it
// reached before it was closed.
func (j *Journal) finishTx(t *Tx, last phase, reply *pb.RunScriptResponse, abortErr error) {
	entry := &pb.JournalEntry{Begin: t.begin, Reply: reply, Finished: now(), Phase: "done"}
	keep := last == rollbackFailed
	clean := func() error { return j.clean(t, entry, keep) }
	switch {
	case last == halted:
		clean = nil
		j.setBroken(errUnrecovered)
		j.noteUnfinished(t, reply)
	case last == committed && len(t.actions) > 0: // the next Recover runs them
		clean = nil
	case abortErr != nil: // the log has no abort record, so the directory must leave open
		clean = func() error {
			if err := j.moveToKept(t.ID()); err != nil {
				j.setBroken(fault.On("journal", err))
				return err
			}
			return j.saveEntry(entry)
		}
	}
	j.mu.Lock()
	j.current = nil
	if last != halted && reply != nil { // without a reply nothing ran
		j.store.add(entry)
	}
	j.mu.Unlock()
	j.cleanups.Go(func() {
		if clean != nil {
			_ = clean() // the next Recover does it again
		}
		if t.log != nil {
			_ = t.log.close()
		}
		j.writer <- struct{}{}
		if last == halted || last == committed && len(t.actions) > 0 {
			j.askForRecovery()
		}
	})
}

// clean stores the entry, and then removes the transaction's files. keep: they move to kept instead. It can be repeated.
func (j *Journal) clean(t *Tx, entry *pb.JournalEntry, keep bool) error {
	if entry.Reply != nil {
		if err := j.saveEntry(entry); err != nil {
			return err
		}
	}
	if t.log == nil {
		return nil
	}
	if keep {
		return j.moveToKept(t.ID())
	}
	return t.removeFiles()
}

// removeFiles removes the transaction's files. The before-images go first, durably: beside an empty log they would read as
// damage.
func (t *Tx) removeFiles() error {
	j := t.journal
	for _, s := range t.steps {
		if take := s.record.GetTake(); take != nil && take.Spool != "" {
			if err := t.checkMounts(s); err != nil {
				return err
			}
			if err := t.removeSpool(take); err != nil {
				return err
			}
		}
	}
	kept, err := os.ReadDir(t.dir("u"))
	if ignoreNotExist(err) != nil {
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

// recycle zeroes the log and makes it the spare file. Zeros also erase contents that not everybody may read.
func (t *Tx) recycle() error {
	l := t.log
	if l.err != nil || l.size > maxSpareSize {
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

// moveToKept moves a transaction's directory to kept, where an administrator finds it and recovery does not.
func (j *Journal) moveToKept(id string) error {
	err := j.do("kept.rename", func() error { return os.Rename(j.dir("open", id), j.dir("kept", id)) })
	for _, dir := range []string{"kept", "open"} {
		if err == nil {
			err = j.do("kept.syncdir", func() error { return syncDir(j.dir(dir)) })
		}
	}
	_ = j.refreshKept() // the next Begin does it again
	return err
}

// tempSuffix marks the name of a file that is being written.
const tempSuffix = ".new"

// saveEntry writes an entry under a temporary name, and renames it.
func (j *Journal) saveEntry(entry *pb.JournalEntry) error {
	id := entry.Begin.TransactionId
	payload, err := proto.Marshal(entry)
	if err != nil {
		return err
	}
	chain := frames.NewChain(id)
	data := chain.Append(nil, payload)
	temp := j.dir("done", id+tempSuffix)
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
	delete(j.store.unsaved, id)
	return nil
}

// add appends an entry; one without a reply is ignored.
func (s *store) add(entry *pb.JournalEntry) {
	if entry.Reply == nil {
		return
	}
	if s.unsaved == nil {
		s.unsaved = map[string]*pb.JournalEntry{}
	}
	id := entry.Begin.TransactionId
	s.unsaved[id] = entry
	s.entries = slices.DeleteFunc(s.entries, func(e *pb.JournalEntry) bool { return e.Begin.TransactionId == id })
	s.entries = append(s.entries, withoutReply(entry))
}

// withoutReply returns an entry without the large parts of the reply.
func withoutReply(entry *pb.JournalEntry) *pb.JournalEntry {
	short := &pb.JournalEntry{Begin: entry.Begin, Finished: entry.Finished, Phase: entry.Phase}
	if entry.Reply != nil {
		short.Reply = &pb.RunScriptResponse{Status: entry.Reply.Status, Changes: make([]*pb.Change, len(entry.Reply.Changes))}
	}
	return short
}

// loadStore reads the stored entries, once. It removes those that are damaged, too old or of another machine.
func (j *Journal) loadStore() error {
	if j.store.loaded {
		return nil
	}
	names, err := os.ReadDir(j.dir("done"))
	if err != nil {
		return fault.Cause(err)
	}
	var list []*pb.JournalEntry
	for _, name := range names {
		if strings.HasSuffix(name.Name(), tempSuffix) && j.store.unsaved[strings.TrimSuffix(name.Name(), tempSuffix)] != nil {
			continue // being written
		}
		entry, err := j.readEntry(name.Name())
		if err != nil || !j.isCurrent(entry) {
			if err := os.Remove(j.dir("done", name.Name())); err != nil {
				return fault.Cause(err)
			}
			continue
		}
		list = append(list, withoutReply(entry))
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

// isCurrent reports whether an entry is this machine's and not expired. A clock that jumped back expires nothing.
func (j *Journal) isCurrent(entry *pb.JournalEntry) bool {
	return entry.Begin.MachineId == j.config.MachineID() && time.Since(entry.Finished.AsTime()) < j.config.Expiry
}

func (j *Journal) readEntry(id string) (*pb.JournalEntry, error) {
	data, err := os.ReadFile(j.dir("done", id))
	if err != nil {
		return nil, fault.Cause(err)
	}
	payload, err := frames.ReadOne(id, data)
	if err != nil {
		return nil, fault.Wrapf(fault.ErrCorrupt, "%v", err)
	}
	entry := &pb.JournalEntry{}
	if err := proto.Unmarshal(payload, entry); err != nil {
		return nil, fault.Wrapf(fault.ErrCorrupt, "%v", err)
	}
	return entry, nil
}

// trim removes entries that are expired or beyond Config.Entries.
func (j *Journal) trim() {
	over := len(j.store.entries) - j.config.Entries
	j.store.entries = slices.DeleteFunc(j.store.entries, func(e *pb.JournalEntry) bool {
		over--
		if over < 0 && j.isCurrent(e) {
			return false
		}
		delete(j.store.unsaved, e.Begin.TransactionId)
		_ = os.Remove(j.dir("done", e.Begin.TransactionId)) // else the next start removes it
		return true
	})
}

// Ref selects a stored transaction: all fields that are set must match.
type Ref struct{ ID, Key, MessageID string }

func (r Ref) matches(b *pb.JournalBegin) bool {
	return r != Ref{} && (r.ID == "" || r.ID == b.TransactionId) && (r.Key == "" || r.Key == b.Key) && (r.MessageID == "" || r.MessageID == b.MessageId)
}

// Stored returns the latest transaction that ended and matches ref, with its reply. The error is fs.ErrNotExist if there
// is none.
func (j *Journal) Stored(ref Ref) (*pb.JournalEntry, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.loadStore(); err != nil {
		return nil, err
	}
	j.trim()
	for _, e := range slices.Backward(j.store.entries) {
		if !ref.matches(e.Begin) {
			continue
		}
		if whole, ok := j.store.unsaved[e.Begin.TransactionId]; ok {
			return proto.Clone(whole).(*pb.JournalEntry), nil
		}
		return j.readEntry(e.Begin.TransactionId)
	}
	return nil, fs.ErrNotExist
}

// List returns at most n transactions, newest first and those that have not ended included: those older than the one with the id after,
// or the newest if after is empty, of owners that sees reports true for. next is the id to continue with; empty at the end.
func (j *Journal) List(after string, n int, sees func(port string) bool) (list []*pb.TransactionInfo, next string, err error) {
	j.mu.Lock()
	t := j.current
	if err := j.loadStore(); err != nil {
		j.mu.Unlock()
		return nil, "", err
	}
	j.trim()
	entries, unfinished := slices.Clone(j.store.entries), j.unfinishedInfos()
	j.mu.Unlock()
	slices.SortStableFunc(entries, func(a, b *pb.JournalEntry) int { return strings.Compare(a.Begin.TransactionId, b.Begin.TransactionId) })
	if t != nil && after == "" && sees(t.begin.Port) {
		list = append(list, t.info())
	}
	if after == "" {
		list = append(list, unfinished...)
	}
	for _, e := range slices.Backward(entries) {
		if after != "" && e.Begin.TransactionId >= after || !sees(e.Begin.Port) {
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
		Started: b.Started, Port: b.Port, Finished: e.GetFinished(), Phase: e.GetPhase(), Changes: uint32(len(e.GetReply().GetChanges())),
	}
}

func (t *Tx) info() *pb.TransactionInfo {
	t.status.mu.Lock()
	defer t.status.mu.Unlock()
	i := info(t.begin, nil)
	i.Phase = map[phase]string{running: "running", awaiting: "awaiting_confirm", committed: "done"}[t.status.phase]
	if i.Phase == "" {
		i.Phase = "rolling_back"
	}
	i.JournalBytes = uint64(t.status.bytes)
	return i
}
