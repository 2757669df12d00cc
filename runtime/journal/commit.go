package journal

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Action is something to be done after a commit, at least once.
type Action struct {
	// Op and Args name the operation; it must bear to be done again.
	Op   string
	Args proto.Message
	// SameBoot leaves it out if the guest was booted again since the commit.
	SameBoot bool
	// Target is what people call it.
	Target string
}

// Commit makes all changes durable, and then, with one record, that they stay. The record holds the reply and the
// actions to come. Nil is the promise; on an error the caller rolls back.
func (t *Tx) Commit(ctx context.Context, reply *pb.RunScriptResponse, after ...Action) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.mayEnd(ctx); err != nil {
		return err
	}
	commit := &pb.JournalCommit{Reply: reply, At: now(), BootId: t.journal.config.BootID()}
	for _, action := range after {
		args, err := anypb.New(action.Args)
		if err != nil {
			return fault.On("the action "+action.Op, err)
		}
		commit.After = append(commit.After, &pb.JournalAction{Op: action.Op, Args: args, SameBoot: action.SameBoot, Target: action.Target})
	}
	if len(after) > 0 && t.log == nil {
		if err := t.sticky1(t.start()); err != nil {
			return err
		}
	}
	if t.log != nil {
		if t.phase == running { // what awaits its confirmation is durable already
			if err := t.force(); err != nil {
				return t.sticky1(err)
			}
		}
		if err := t.log.append(&pb.JournalRecord{Record: &pb.JournalRecord_Commit{Commit: commit}}, true); err != nil {
			t.uncommit = t.log.err != nil // the record may be there all the same
			return t.sticky1(fault.On("journal", err))
		}
	}
	t.enter(committed)
	t.reply, t.after = reply, commit.After
	return nil
}

// mayEnd says why a transaction cannot be ended well.
func (t *Tx) mayEnd(ctx context.Context) error {
	switch {
	case t.err != nil:
		return t.err
	case t.phase != running && t.phase != awaiting:
		return fault.Wrapf(fault.ErrInternal, "the transaction has ended")
	}
	return context.Cause(ctx)
}

// After does the actions of the commit, once for all, and gives their outcomes for the reply. The caller ends ctx where
// an action must not take longer; then, or if the agent dies, what is left is done by the next Recover.
func (t *Tx) After(ctx context.Context) []*pb.Change {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.phase != committed {
		return nil
	}
	var list []*pb.Change
	for len(t.after) > 0 && context.Cause(ctx) == nil {
		action := t.after[0]
		change := &pb.Change{Op: action.Op, Target: action.Target, Action: "ran", State: pb.ChangeState_CHANGE_STATE_APPLIED}
		if err := t.act(ctx, action); err != nil {
			change.State, change.Target = pb.ChangeState_CHANGE_STATE_UNKNOWN, fault.On(action.Target, err).Error()
		}
		list = append(list, change)
		t.after = t.after[1:]
	}
	return list
}

func (t *Tx) act(ctx context.Context, action *pb.JournalAction) error {
	if t.journal.config.Run == nil {
		return fault.Unsupported("the operation %s is not known", action.Op)
	}
	args, err := action.Args.UnmarshalNew()
	if err != nil {
		return err
	}
	return t.journal.do("after.run", func() error { return t.journal.config.Run(ctx, action.Op, args) })
}

// Deadline is until when something awaits its confirmation.
type Deadline struct {
	// Boottime is on the clock that counts from boot and through suspends; it decides. Wall is the same for people.
	Boottime time.Duration
	Wall     time.Time
}

// Await makes all changes durable, as Commit, but open: Commit or Rollback decides. A new start of the agent gets the
// transaction back from Recover; after another boot it is rolled back. Called again it sets another deadline.
func (t *Tx) Await(ctx context.Context, reply *pb.RunScriptResponse, until Deadline) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.mayEnd(ctx); err != nil {
		return err
	}
	if t.log == nil {
		if err := t.sticky1(t.start()); err != nil {
			return err
		}
	}
	if t.phase == running {
		if err := t.force(); err != nil {
			return t.sticky1(err)
		}
	}
	record := &pb.JournalAwait{Reply: reply, BootId: t.journal.config.BootID(),
		UntilBoottimeMs: uint64(max(until.Boottime, 0).Milliseconds()), Until: timestamppb.New(until.Wall)}
	if err := t.write(&pb.JournalRecord{Record: &pb.JournalRecord_Await{Await: record}}, false); err != nil {
		return t.sticky1(fault.On("journal", err))
	}
	t.enter(awaiting)
	t.reply = reply
	return nil
}

// force makes durable what the steps changed: files first, then the names of all. A sync that fails ends the
// transaction: it would tell nothing if it were tried again.
func (t *Tx) force() error {
	paths, all := map[string]bool{}, false
	for _, s := range t.steps {
		switch r := s.record.Record.(type) {
		case *pb.JournalRecord_Keep:
			for _, o := range r.Keep.Objects {
				if o.State.Mtime != nil || o.ParentMtime != nil { // a setting of the kernel is nowhere
					paths[o.Path] = paths[o.Path] || o.Tree
				}
			}
		case *pb.JournalRecord_Take:
			paths[r.Take.Path] = false
			if r.Take.Spool != "" {
				paths[r.Take.Spool] = false
			}
		default:
			all = true
		}
	}
	if all { // an operation changed what it changed
		if err := t.journal.do("commit.syncall", t.journal.config.Root.SyncAll); err != nil {
			return err
		}
	}
	if err := t.journal.expand(paths); err != nil {
		return err
	}
	return t.journal.syncPaths("commit", paths)
}

// expand adds what is in the directories that are marked.
func (j *Journal) expand(paths map[string]bool) error {
	var walk func(dir string) error
	walk = func(dir string) error {
		names, err := j.names(dir)
		if gone(err) == nil || errors.Is(err, syscall.ELOOP) { // no directory
			err = nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			path := below(dir, name)
			paths[path] = false
			if err := walk(path); err != nil {
				return err
			}
		}
		return nil
	}
	for path, tree := range paths {
		if tree {
			if err := walk(path); err != nil {
				return fault.On(path, err)
			}
		}
	}
	return nil
}

// syncPaths makes durable what is at the paths, and then the directories that they are in. What is not there any more
// is durable by its directory, and a directory that is not there by its own.
func (j *Journal) syncPaths(step string, paths map[string]bool) error {
	dirs := map[string]bool{}
	for _, path := range sorted(paths) {
		dir, err := j.syncObject(step+".syncfile", path)
		if err != nil {
			return fault.On(path, err)
		}
		if dir {
			dirs[path] = true
		}
		if up := parent(path); up != "" {
			dirs[up] = true
		}
	}
	for _, dir := range sorted(dirs) {
		if err := j.syncDirectory(step+".syncdir", dir); err != nil {
			return fault.On(dir, err)
		}
	}
	return nil
}

func sorted(set map[string]bool) []string {
	list := make([]string, 0, len(set))
	for path := range set {
		list = append(list, path)
	}
	slices.Sort(list)
	return list
}

// syncObject makes a file durable, and tells of a directory.
func (j *Journal) syncObject(step, path string) (dir bool, err error) {
	at, err := j.config.Root.Exact(path)
	if err != nil {
		return false, gone(err)
	}
	defer at.Close()
	meta, err := at.Stat()
	if err != nil {
		return false, gone(err)
	}
	if meta.Kind != fsys.File {
		return meta.Kind == fsys.Directory, nil
	}
	err = j.do(step, at.Sync)
	if errors.Is(err, os.ErrPermission) { // its mode keeps even its owner from opening it
		err = j.do(step, j.config.Root.SyncAll)
	}
	return false, err
}

func (j *Journal) syncDirectory(step, path string) error {
	at, err := j.config.Root.Exact(path)
	if err != nil {
		return gone(err)
	}
	defer at.Close()
	meta, err := at.Stat()
	if err != nil {
		return gone(err)
	}
	if meta.Kind != fsys.Directory {
		return nil
	}
	err = j.do(step, at.Sync)
	if errors.Is(err, os.ErrPermission) {
		err = j.do(step, j.config.Root.SyncAll)
	}
	return err
}

// gone is nil for a place that is not there any more, or has become a link, so that what it was is elsewhere.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fault.ErrChanged) {
		return nil
	}
	return err
}

// Close ends the transaction: it stores the final reply, and lets the next one begin once this one's files are cleaned
// up, which it does not wait for. A transaction that neither committed nor was rolled back is rolled back. Called again it
// does nothing.
func (t *Tx) Close(ctx context.Context, reply *pb.RunScriptResponse) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.phase == closed {
		return nil
	}
	if t.phase == running || t.phase == awaiting {
		t.rollback(ctx, nil)
	}
	if reply == nil {
		reply = t.reply
	}
	phase, err := t.phase, error(nil)
	if phase == rolledBack || phase == failed {
		err = t.abort(reply, phase == failed)
	}
	t.enter(closed)
	t.journal.end(t, phase, reply, err)
	return err
}

// abort makes durable that the transaction ended without effect, in whatever way the disk takes it.
func (t *Tx) abort(reply *pb.RunScriptResponse, failed bool) error {
	if t.log == nil {
		return nil
	}
	record := &pb.JournalAbort{Reply: reply, At: now(), Failed: failed}
	err := t.log.append(&pb.JournalRecord{Record: &pb.JournalRecord_Abort{Abort: record}}, true)
	if err != nil && t.log.err == nil { // only the reply was too large for what is left of the disk
		record.Reply = brief(reply)
		err = t.log.append(&pb.JournalRecord{Record: &pb.JournalRecord_Abort{Abort: record}}, true)
	}
	return err
}

// brief is what of a reply fits into the smallest room.
func brief(reply *pb.RunScriptResponse) *pb.RunScriptResponse {
	if reply == nil {
		return nil
	}
	short := &pb.RunScriptResponse{
		Status: reply.Status, Stats: reply.Stats, TransactionId: reply.TransactionId, Script: reply.Script,
		LogDropped: reply.LogDropped + uint32(len(reply.Log)),
	}
	if e := reply.Error; e != nil {
		short.Error = &pb.ScriptError{Kind: e.Kind, Message: cut(e.Message), Line: e.Line, Op: e.Op, Code: e.Code}
	}
	for _, change := range reply.NotUndone[:min(len(reply.NotUndone), 8)] {
		short.NotUndone = append(short.NotUndone, &pb.Change{Op: change.Op, Target: cut(change.Target), Action: change.Action, State: change.State})
	}
	return short
}

func cut(text string) string { return text[:min(len(text), 1024)] }
