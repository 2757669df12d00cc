package journal

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/runtime/journal/internal/frames"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// store is the index of the transactions that ended. Their replies are on disk, in a file each, and are read when they
// are asked for. It has a lock of its own: to read the index may take as long as the disk does.
type store struct {
	mu      sync.Mutex
	loaded  bool
	entries []*storedEntry              // oldest first
	unsaved map[string]*pb.JournalEntry // complete entries that are not on disk yet
}

// storedEntry is what the index knows of an entry.
type storedEntry struct {
	*pb.JournalEntry       // of the reply only the status
	size, headSize   int64 // of the file and of its first record; the latter as far as known
	short            bool  // the whole reply is not stored any more
	// finished is when the transaction ended, on the clock that counts from this boot on: negative in an earlier one.
	finished time.Duration
}

func (e *storedEntry) id() string { return e.Begin.TransactionId }

// reset forgets the index. loaded: there is none to be read.
func (s *store) reset(loaded bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loaded, s.entries, s.unsaved = loaded, nil, nil
}

// finishTx adds a transaction that ended to the store, and removes its files in the background. last is the phase that it
// reached before it was closed.
func (j *Journal) finishTx(t *Tx, last phase, reply *pb.RunScriptResponse, abortErr error) {
	entry := j.newEntry(t.begin, reply, "done")
	if last == committed {
		entry.MachineIdAfter = changedTo(t.begin, j.config.MachineID())
	}
	keep, told := last == rollbackFailed, j.tellMachine(entry)
	clean := func() error {
		if told != nil {
			return told
		}
		return j.clean(t, entry, keep)
	}
	switch {
	case last == halted:
		clean = nil
		j.setBroken(errUnrecovered)
		j.noteUnfinished(t, reply)
	case last == committed && len(t.actions) > 0: // the next Recover runs them
		clean = nil
	case abortErr != nil: // the log has no abort record, so the directory must leave open
		clean = func() error {
			_ = t.log.close()
			if err := j.moveToKept(t.ID()); err != nil {
				j.setBroken(fault.On("journal", err))
				return err
			}
			return j.saveEntry(entry)
		}
	}
	if last != halted {
		j.store.add(entry)
	}
	j.mu.Lock()
	j.current = nil
	j.mu.Unlock()
	j.cleanups.Go(func() {
		leave := j.enterAnyway()
		if clean != nil {
			_ = clean() // the next Recover does it again
		}
		if t.log != nil {
			_ = t.log.close()
		}
		leave()
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
		_ = t.log.close()
		return j.moveToKept(t.ID())
	}
	return t.removeFiles()
}

// removeFiles removes the transaction's files. The before-images go first, durably: an older agent takes an empty log beside
// them for damage.
func (t *Tx) removeFiles() error {
	j := t.journal
	if err := t.removeSpools(); err != nil {
		return err
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
	err = t.recycle()
	_ = t.log.close() // on Windows what is open cannot be removed
	if err != nil {
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
	if err := l.close(); err != nil {
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

// newEntry describes a transaction that ends now.
func (j *Journal) newEntry(begin *pb.JournalBegin, reply *pb.RunScriptResponse, phase string) *pb.JournalEntry {
	LimitReply(reply)
	return &pb.JournalEntry{Begin: begin, Reply: reply, Finished: now(), Phase: phase, BootId: j.config.BootID(),
		UptimeMs: uint64(j.config.Uptime().Milliseconds()), Changes: uint32(len(reply.GetChanges()))}
}

// tempSuffix marks the name of a file that is being written.
const tempSuffix = ".new"

// saveEntry writes an entry under a temporary name, and renames it. The file has two records: a head that is small, and
// the reply. So the index is read without the replies, and a file is made smaller by cutting off the reply.
func (j *Journal) saveEntry(entry *pb.JournalEntry) error {
	id := entry.Begin.TransactionId
	head, err := proto.Marshal(headOf(entry))
	if err != nil {
		return err
	}
	chain := frames.NewChain(id)
	data := chain.Append(nil, head)
	if !entry.Head {
		reply, err := proto.Marshal(entry.Reply)
		if err != nil {
			return err
		}
		data = chain.Append(data, reply)
	}
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
	j.store.mu.Lock()
	defer j.store.mu.Unlock()
	delete(j.store.unsaved, id)
	return nil
}

// headOf returns an entry with a short reply.
func headOf(entry *pb.JournalEntry) *pb.JournalEntry {
	head := proto.CloneOf(entry)
	if !head.Head {
		head.Head, head.Reply = true, shortReply(entry.Reply)
	}
	return head
}

// add appends an entry; one without a reply is ignored, since nothing ran.
func (s *store) add(entry *pb.JournalEntry) {
	if entry.Reply == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsaved == nil {
		s.unsaved = map[string]*pb.JournalEntry{}
	}
	id := entry.Begin.TransactionId
	s.unsaved[id] = entry
	s.entries = slices.DeleteFunc(s.entries, func(e *storedEntry) bool { return e.id() == id })
	finished := time.Duration(entry.UptimeMs) * time.Millisecond
	s.entries = append(s.entries, indexed(entry, int64(proto.Size(entry)), finished))
}

// indexed returns what the index holds of an entry.
func indexed(entry *pb.JournalEntry, size int64, finished time.Duration) *storedEntry {
	small := &pb.JournalEntry{Begin: entry.Begin, Finished: entry.Finished, Phase: entry.Phase, BootId: entry.BootId,
		UptimeMs: entry.UptimeMs, Head: entry.Head, Changes: entry.Changes, MachineIdAfter: entry.MachineIdAfter,
		Reply: &pb.RunScriptResponse{Status: entry.GetReply().GetStatus()}}
	return &storedEntry{JournalEntry: small, size: size, finished: finished}
}

// loadStore reads the heads of the stored entries, once. It removes those that are damaged or of another machine.
func (j *Journal) loadStore() error {
	if j.store.loaded {
		return nil
	}
	names, err := os.ReadDir(j.dir("done")) // sorted, and so by time
	if err != nil {
		return fault.Cause(err)
	}
	known := map[string]bool{} // ended since the start
	for _, e := range j.store.entries {
		known[e.id()], known[e.id()+tempSuffix] = true, true
	}
	var list []*storedEntry
	machines := j.machines()
	for _, name := range names {
		if known[name.Name()] {
			continue
		}
		entry, err := j.readHead(name.Name())
		if err != nil || !entry.isOf(machines) {
			if err := os.Remove(j.dir("done", name.Name())); err != nil {
				return fault.Cause(err)
			}
			continue
		}
		list = append(list, entry)
	}
	j.store.entries, j.store.loaded = append(list, j.store.entries...), true
	j.setTimes(list)
	return nil
}

// setTimes computes when the entries were finished, on the clock of this boot. Between two boots it counts no time: how
// long the guest was off only the wall clock knows, which may be wrong by years. So an entry may look younger than it
// is. One of an older agent, which says nothing of its boot, counts as new.
func (j *Journal) setTimes(list []*storedEntry) {
	boot, start := j.config.BootID(), time.Duration(0)
	for _, e := range slices.Backward(list) {
		up := time.Duration(e.UptimeMs) * time.Millisecond
		if e.UptimeMs == 0 {
			e.finished = j.config.Uptime()
			continue
		}
		if e.BootId != boot {
			boot, start = e.BootId, start-up
		}
		e.finished = start + up
	}
}

// readHead reads what the index holds of an entry.
func (j *Journal) readHead(id string) (*storedEntry, error) {
	file, err := os.Open(j.dir("done", id))
	if err != nil {
		return nil, fault.Cause(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fault.Cause(err)
	}
	payload, err := frames.ReadFirst(id, io.NewSectionReader(file, 0, info.Size()))
	if err != nil {
		return nil, fault.Wrapf(fault.ErrCorrupt, "%v", err)
	}
	entry := &pb.JournalEntry{}
	if err := proto.Unmarshal(payload, entry); err != nil {
		return nil, fault.Wrapf(fault.ErrCorrupt, "%v", err)
	}
	if !entry.Head { // of an older agent
		entry.Changes = uint32(len(entry.Reply.GetChanges()))
	}
	e := indexed(entry, info.Size(), 0)
	e.headSize = int64(frames.HeaderSize + len(payload))
	e.short = entry.Head && e.size == e.headSize
	return e, nil
}

// readEntry reads an entry with its whole reply, or with the short one if that is all that is left.
func (j *Journal) readEntry(id string) (*pb.JournalEntry, error) {
	data, err := os.ReadFile(j.dir("done", id))
	if err != nil {
		return nil, fault.Cause(err)
	}
	payloads, _, _, err := frames.Read(id, data)
	if err == nil && len(payloads) == 0 {
		err = io.ErrUnexpectedEOF
	}
	entry := &pb.JournalEntry{}
	if err == nil {
		err = proto.Unmarshal(payloads[0], entry)
	}
	if !entry.Head { // of an older agent
		entry.Changes = uint32(len(entry.GetReply().GetChanges()))
	}
	if err == nil && entry.Head && len(payloads) > 1 {
		entry.Head, entry.Reply = false, &pb.RunScriptResponse{}
		err = proto.Unmarshal(payloads[1], entry.Reply)
	}
	if err != nil {
		return nil, fault.Wrapf(fault.ErrCorrupt, "%v", err)
	}
	LimitReply(entry.Reply) // older agents stored more
	return entry, nil
}

// trim removes entries of another machine, expired ones and those beyond Config.Entries, and shortens the oldest
// replies until all are within Config.Bytes: a request that is sent again must not run again only because others had
// long replies.
func (j *Journal) trim() {
	over, size, machines := len(j.store.entries)-j.config.Entries, int64(0), j.machines()
	j.store.entries = slices.DeleteFunc(j.store.entries, func(e *storedEntry) bool {
		over--
		if over < 0 && e.isOf(machines) && j.config.Uptime()-e.finished < j.config.Expiry {
			size += e.size
			return false
		}
		delete(j.store.unsaved, e.id())
		_ = os.Remove(j.dir("done", e.id())) // else the next start removes it
		return true
	})
	for _, e := range j.store.entries {
		if size <= j.config.Bytes {
			return
		}
		if !e.short {
			size -= j.shorten(e)
		}
	}
}

// shorten removes the whole reply of an entry, and returns how many bytes that saves.
func (j *Journal) shorten(e *storedEntry) int64 {
	e.short = true // also if it fails: the next start tries again
	was := e.size
	if whole, ok := j.store.unsaved[e.id()]; ok {
		j.store.unsaved[e.id()] = headOf(whole)
		e.size = int64(proto.Size(j.store.unsaved[e.id()]))
		return was - e.size
	}
	head, err := j.readHead(e.id())
	switch {
	case err != nil:
		return 0
	case head.Head:
		e.size = head.headSize
		err = os.Truncate(j.dir("done", e.id()), e.size)
	default: // of an older agent
		e.size, err = j.rewriteShort(e.id())
	}
	if err != nil {
		return 0
	}
	return was - e.size
}

// rewriteShort replaces the file of an older agent by one with the head alone, and returns its size.
func (j *Journal) rewriteShort(id string) (int64, error) {
	whole, err := j.readEntry(id)
	if err != nil {
		return 0, err
	}
	head, err := proto.Marshal(headOf(whole))
	if err != nil {
		return 0, err
	}
	path, chain := j.dir("done", id), frames.NewChain(id)
	data := chain.Append(nil, head)
	return int64(len(data)), errors.Join(os.WriteFile(path+tempSuffix, data, 0o600), os.Rename(path+tempSuffix, path))
}

// Ref selects a stored transaction: all fields that are set must match.
type Ref struct{ ID, Key, MessageID string }

func (r Ref) matches(b *pb.JournalBegin) bool {
	return r != Ref{} && (r.ID == "" || r.ID == b.TransactionId) && (r.Key == "" || r.Key == b.Key) && (r.MessageID == "" || r.MessageID == b.MessageId)
}

// Stored returns the latest transaction that ended and matches ref, with its reply. The error is fs.ErrNotExist if there
// is none.
func (j *Journal) Stored(ref Ref) (*pb.JournalEntry, error) {
	j.store.mu.Lock()
	defer j.store.mu.Unlock()
	if err := j.loadStore(); err != nil {
		return nil, err
	}
	j.trim()
	for _, e := range slices.Backward(j.store.entries) {
		if !ref.matches(e.Begin) {
			continue
		}
		if whole, ok := j.store.unsaved[e.id()]; ok {
			return proto.CloneOf(whole), nil
		}
		return j.readEntry(e.id())
	}
	return nil, fs.ErrNotExist
}
