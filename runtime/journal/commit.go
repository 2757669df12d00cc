package journal

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Action is an operation that runs after the commit, at least once.
type Action struct {
	// Op and Args name the operation, which must be idempotent. Required.
	Op   string
	Args proto.Message
	// SameBoot skips the action if the guest was booted again since the commit.
	SameBoot bool
	// Target names the object for people, in Change.Target. Optional.
	Target string
}

// Commit makes all changes durable and then writes the commit record, which holds the reply, cut by LimitReply, and the
// actions to run: those given to Await where there were some. If it returns nil the changes are permanent; on an error the
// caller rolls back.
func (t *Tx) Commit(ctx context.Context, reply *pb.RunScriptResponse, after ...Action) error {
	if t.hasFiles() || len(after) > 0 {
		leave, err := t.journal.enter(ctx)
		if err != nil {
			return err
		}
		defer leave()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.checkOpen(ctx); err != nil {
		return err
	}
	LimitReply(reply)
	actions, err := t.toActions(after)
	if err != nil {
		return err
	}
	if t.phase == awaiting {
		actions = append(actions, t.actions...)
	}
	machine := t.journal.config.MachineID()
	commit := &pb.JournalCommit{Reply: reply, At: now(), BootId: t.journal.config.BootID(), After: actions, MachineId: &machine}
	if len(after) > 0 && t.log == nil {
		if err := t.fail(t.createFiles()); err != nil {
			return err
		}
	}
	if t.log != nil {
		if t.phase == running { // a transaction that awaits confirmation is durable already
			if err := t.syncChanges(); err != nil {
				return t.fail(err)
			}
		}
		if err := t.log.append(&pb.JournalRecord{Record: &pb.JournalRecord_Commit{Commit: commit}}, true); err != nil {
			t.commitUncertain = t.log.err != nil // the record may have reached the disk all the same
			return t.fail(fault.On("journal", err))
		}
	}
	t.setPhase(committed)
	t.reply, t.actions = reply, commit.After
	return nil
}

// toActions makes records of actions.
func (t *Tx) toActions(after []Action) ([]*pb.JournalAction, error) {
	var list []*pb.JournalAction
	for _, action := range after {
		args, err := anypb.New(action.Args)
		if err != nil {
			return nil, fault.On("the action "+action.Op, err)
		}
		record := &pb.JournalAction{Op: action.Op, Args: args, SameBoot: action.SameBoot, Target: action.Target}
		if t.begin.GetSecrets() {
			record.Target, record.Told = "", t.tell(action.Target)
		}
		list = append(list, record)
	}
	return list, nil
}

// checkOpen returns why a transaction can neither commit nor await confirmation; nil if it can.
func (t *Tx) checkOpen(ctx context.Context) error {
	switch {
	case t.err != nil:
		return t.err
	case t.phase != running && t.phase != awaiting:
		return fault.Wrapf(fault.ErrInternal, "the transaction has ended")
	}
	return context.Cause(ctx)
}

// After runs the actions of the commit and returns their outcomes for the reply; another call runs none of them again.
// The caller bounds the time by ctx. If ctx ends, or the agent dies, the next Recover runs the actions that are left.
func (t *Tx) After(ctx context.Context) []*pb.Change {
	defer t.enterAnyway()()
	return t.after(ctx)
}

func (t *Tx) after(ctx context.Context) []*pb.Change {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.phase != committed {
		return nil
	}
	var list []*pb.Change
	for len(t.actions) > 0 && context.Cause(ctx) == nil {
		action := t.actions[0]
		target := action.Told
		if !t.begin.GetSecrets() { // else an older agent wrote it as it was
			target = action.Target
		}
		change := &pb.Change{Op: action.Op, Target: target, Action: "ran", State: pb.ChangeState_CHANGE_STATE_APPLIED}
		if err := t.runAction(ctx, action); err != nil {
			change.State, change.Target = pb.ChangeState_CHANGE_STATE_UNKNOWN, fault.On(target, err).Error()
		}
		list = append(list, change)
		t.actions = t.actions[1:]
	}
	return list
}

func (t *Tx) runAction(ctx context.Context, action *pb.JournalAction) error {
	if t.journal.config.Run == nil {
		return fault.Unsupported("operation %s is unknown", action.Op)
	}
	args, err := action.Args.UnmarshalNew()
	if err != nil {
		return err
	}
	return t.withoutSecrets(t.journal.do("after.run", func() error {
		_, err := t.journal.config.Run(ctx, action.Op, args)
		return err
	}))
}

// syncChanges makes durable what the steps changed: files first, then the directory entries. A sync that fails must not be
// tried again: the kernel would report success although the data is lost.
func (t *Tx) syncChanges() error {
	paths, all := map[string]bool{}, false
	for _, s := range t.steps {
		all = all || s.inverse != "" && !s.last || s.irreversible
		if s.moved != "" {
			paths[s.moved] = false
		}
		if s.spool != "" {
			paths[s.spool] = false
		}
	}
	for _, o := range t.status.paths { // which nobody changes but under t.mu
		if o.disk { // a kernel setting is on none
			paths[o.path] = paths[o.path] || o.tree
		}
	}
	if all { // the paths that an operation changed are unknown
		if err := t.journal.do("commit.syncall", t.journal.config.Root.SyncAll); err != nil {
			return err
		}
	}
	if err := t.journal.addTreePaths(paths); err != nil {
		return err
	}
	return t.journal.syncPaths("commit", paths)
}

// addTreePaths adds all that is below the directories whose value is true. Where that is more than is kept of trees, the file
// systems that the rest is on are made durable at once.
func (j *Journal) addTreePaths(paths map[string]bool) error {
	left := maxObjects
	var walk func(dir string) error
	walk = func(dir string) error {
		var below []string
		err := j.eachName(dir, func(name string) error {
			if left--; left < 0 {
				return errManyPaths
			}
			path := childPath(dir, name)
			paths[path] = false
			below = append(below, path)
			return nil
		})
		if ignoreGone(err) == nil || errors.Is(err, syscall.ELOOP) { // no directory
			err = nil
		}
		for _, path := range below {
			if err == nil {
				err = walk(path)
			}
		}
		return err
	}
	for _, path := range sortedKeys(paths) {
		if !paths[path] {
			continue
		}
		err := walk(path)
		if err == errManyPaths { // what a command declared has no other file system in it
			err = j.syncFileSystem("commit.syncall", path)
		}
		if err != nil {
			return fault.On(path, err)
		}
	}
	return nil
}

var errManyPaths = errors.New("more paths than are kept")

// syncFileSystem makes durable the file system that a directory is on.
func (j *Journal) syncFileSystem(step, path string) error {
	dir, err := j.openDir(path)
	if err != nil {
		return ignoreGone(err)
	}
	defer dir.Close()
	return j.do(step, dir.SyncAll)
}

// syncPaths syncs what is at the paths, and then their parent directories. The removal of an object is durable with its
// directory, and that of a directory with the directory above it.
func (j *Journal) syncPaths(step string, paths map[string]bool) error {
	dirs := map[string]bool{}
	for _, path := range sortedKeys(paths) {
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
	for _, dir := range sortedKeys(dirs) {
		if err := j.syncDirectory(step+".syncdir", dir); err != nil {
			return fault.On(dir, err)
		}
	}
	return nil
}

func sortedKeys[V any](set map[string]V) []string {
	list := make([]string, 0, len(set))
	for path := range set {
		list = append(list, path)
	}
	slices.Sort(list)
	return list
}

// syncObject syncs a file. A directory it only reports: the caller syncs it later.
func (j *Journal) syncObject(step, path string) (dir bool, err error) {
	at, err := j.config.Root.Exact(path)
	if err != nil {
		return false, ignoreGone(err)
	}
	defer at.Close()
	meta, err := at.Stat()
	if err != nil {
		return false, ignoreGone(err)
	}
	if meta.Kind != fsys.File {
		return meta.Kind == fsys.Directory, nil
	}
	err = j.do(step, at.Sync)
	if errors.Is(err, os.ErrPermission) { // its mode forbids even its owner to open it
		err = j.do(step, j.config.Root.SyncAll)
	}
	return false, err
}

func (j *Journal) syncDirectory(step, path string) error {
	at, err := j.config.Root.Exact(path)
	if err != nil {
		return ignoreGone(err)
	}
	defer at.Close()
	meta, err := at.Stat()
	if err != nil {
		return ignoreGone(err)
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

// ignoreGone returns nil for the error of a path that is not there any more, or whose directory was replaced by something
// else, such as a link.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fault.ErrChanged) {
		return nil
	}
	return err
}

// Close ends the transaction and stores the reply; nil stores that of Commit or Await. A transaction that is still open is
// rolled back. The files are removed in the background, after which the next transaction can begin. Another call does
// nothing.
func (t *Tx) Close(ctx context.Context, reply *pb.RunScriptResponse) error {
	defer t.enterAnyway()()
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
	LimitReply(reply)
	last, err := t.phase, error(nil)
	if last == rolledBack || last == rollbackFailed {
		err = t.abort(reply, last == rollbackFailed)
	}
	t.setPhase(closed)
	t.journal.finishTx(t, last, reply, err)
	return err
}

// abort writes the abort record, with a shorter reply if the disk has no space for the whole one.
func (t *Tx) abort(reply *pb.RunScriptResponse, failed bool) error {
	if t.log == nil {
		return nil
	}
	record := &pb.JournalAbort{Reply: reply, At: now(), Failed: failed}
	err := t.log.append(&pb.JournalRecord{Record: &pb.JournalRecord_Abort{Abort: record}}, true)
	if err != nil && t.log.err == nil { // nothing was written: the reply is too large for the free space
		record.Reply = shortReply(reply)
		err = t.log.append(&pb.JournalRecord{Record: &pb.JournalRecord_Abort{Abort: record}}, true)
	}
	return err
}

// eachName calls f with the names in a directory, until it returns an error.
func (j *Journal) eachName(path string, f func(name string) error) error {
	dir, err := j.openDir(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Each(f)
}

func (j *Journal) openDir(path string) (*fsys.Dir, error) {
	at, err := j.config.Root.Exact(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	return at.OpenDir()
}
