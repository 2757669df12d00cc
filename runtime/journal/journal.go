// Package journal groups changes of the guest into a transaction: all of them happened and are durable, or none.
//
//	Begin ─► Before Take Undo: undo record, durable ─► the change ─► … ─┬─► Commit ──┐
//	                                                                    │            ├─► Close: the reply is stored
//	         Recover, after the agent or the guest died ─► undo ◄───────┴─► Rollback ┘
//
// It is an undo log: a before-image is durable before the object is changed, changes are made in place, and the commit
// record makes them permanent. There is one writer. The order of the writes and syncs, with the reasons, is in DESIGN.md.
//
// Not here: deciding whether a call may run, what an operation does, and running scripts.
package journal

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Config configures a Journal.
type Config struct {
	// Dir is the directory of the journal's files. Open makes it, with mode 0700. Required.
	Dir string
	// Prepare is called before the files of Dir are opened, each time that is tried. Optional.
	Prepare func() error
	// Ready is called once nothing that a former agent began is unfinished, before the first transaction begins: by Open, or by
	// the Recover that ended what was. What that took back, such as the machine ID, is as it was by then. It is not called
	// where a transaction still awaits its confirmation. An error is as one of Prepare. Optional.
	Ready func() error
	// Tolerant: a Dir that cannot be used, such as on a disk that is read-only, does not fail Open. No transaction may begin
	// until a Recover finds that it can be used.
	Tolerant bool
	// Root is the file system that the changes are made in. Required; it stays the caller's.
	Root *fsys.Root
	// Run runs an operation by name: an inverse on a rollback, an action after a commit. It may be called again for one that
	// has run already. idle says that there was nothing to take back. Required if transactions use inverses or actions.
	Run func(ctx context.Context, op string, args proto.Message) (idle bool, err error)
	// Subject returns what an operation with these arguments is about, as people call it. Optional.
	Subject func(op string, args proto.Message) string
	// MachineID and BootID identify the guest, so that a clone is noticed, and the boot. Optional; nil: always the same.
	// What a transaction stored counts in a guest with the machine ID that it began with, or that it left.
	// An empty BootID is not known: what awaits its confirmation is then taken back by Recover.
	MachineID, BootID func() string
	// MachineChanged is called for a transaction that has committed and leaves another machine ID, before its reply is stored,
	// and once more where that was interrupted. Optional.
	MachineChanged func(begin *pb.JournalBegin, to string) error
	// Enter begins what writes to Dir, or to Root as Recover, Rollback and the actions after a commit do, until leave: it waits
	// while these are frozen, within ctx. A step of a transaction is entered by who makes it. Optional.
	Enter func(ctx context.Context) (leave func(), err error)
	// Version is the agent's, for the records. Optional.
	Version string
	// Uptime returns the time since the guest booted, suspends included. Optional.
	Uptime func() time.Duration
	// Expiry is how long the reply of a transaction is stored, in time that the guest ran. Optional; 0: 30 days.
	Expiry time.Duration
	// Entries is the number of replies that are stored. Optional; 0: 1000.
	Entries int
	// Bytes is the size of all stored replies together. Over it the oldest are shortened: they lose their result, log
	// and changes. Optional; 0: 64 MiB.
	Bytes int64
	// AutomountWait is how long a step waits for what is mounted at its first use, before it counts as not there. Optional;
	// 0: 10 s, which a local disk does not need.
	AutomountWait time.Duration
	// Step is for tests: it is called with the name of each action on the disk before the action runs. An error makes the
	// action fail; ErrSkip leaves it out as if it had succeeded. Optional.
	Step func(name string) error
}

// ErrSkip leaves an action out as if it had succeeded; see Config.Step.
var ErrSkip = errors.New("left out")

// Sizes in bytes.
const (
	initialSize       = 1 << 20  // of a new journal: room for some dozen small files
	maxSpareSize      = 4 << 20  // of the largest journal that is used again
	lastRecordReserve = 64 << 10 // of what only the last record may use, so that an abort never waits for free space
	maxInlineFile     = 16 << 10 // of the largest file whose content goes into a record: less than two blocks' worth of syncs
)

// maxAttempts is how many rollbacks in a row may be interrupted without progress before the transaction is quarantined.
const maxAttempts = 3

// lockWait is how long an agent that was just killed is waited for: the kernel frees its memory before its lock.
const lockWait = 2 * time.Second

// Journal holds the transactions of one root. It is safe for concurrent use.
type Journal struct {
	config   Config
	state    *fsys.Root // Dir
	lock     *os.File
	writer   chan struct{} // holds one token: whoever has it may change the guest
	cleanups sync.WaitGroup

	unrecovered chan struct{} // see Unrecovered
	ready       bool          // Config.Ready was called; who is the writer changes it
	early       atomic.Bool   // the last Recover was at early boot

	mu         sync.Mutex
	awaitBegan chan struct{} // closed, and replaced, when a transaction begins to await its confirmation
	current    *Tx
	unfinished map[string]unfinished // by id
	broken     error                 // why no transaction may begin
	unusable   error                 // why Dir cannot be used
	kept       []string
	lastID     int64                 // the time in the newest id
	triggered  map[string]chan error // mounts that were used to have them mounted, each with its outcome
	store      store                 // has a lock of its own
}

// unfinished is what is known of a transaction whose rollback halted.
type unfinished struct {
	status   *txStatus
	info     *pb.TransactionInfo
	reply    *pb.RunScriptResponse // of the run; nil after a restart
	obstacle obstacle
}

// Open opens the journal. If another process has it open the error is fault.ErrBusy. If it holds unfinished transactions,
// Recover must end them before another can begin.
func Open(config Config) (*Journal, error) {
	if config.MachineID == nil {
		config.MachineID = func() string { return "" }
	}
	if config.BootID == nil {
		config.BootID = func() string { return "always" }
	}
	if config.Uptime == nil {
		config.Uptime = uptime
	}
	if config.Bytes == 0 {
		config.Bytes = 64 << 20
	}
	if config.Expiry == 0 {
		config.Expiry = 30 * 24 * time.Hour
	}
	if config.Entries == 0 {
		config.Entries = 1000
	}
	if config.AutomountWait == 0 {
		config.AutomountWait = 10 * time.Second
	}
	j := &Journal{config: config, writer: make(chan struct{}, 1), unrecovered: make(chan struct{}, 1), awaitBegan: make(chan struct{}),
		unfinished: map[string]unfinished{}, triggered: map[string]chan error{}}
	if err := j.open(); err != nil {
		if !config.Tolerant || errors.Is(err, fault.ErrBusy) {
			return nil, fault.On("journal "+config.Dir, err)
		}
		j.setUnusable(err)
	}
	j.writer <- struct{}{}
	return j, nil
}

func (j *Journal) open() error {
	if j.config.Prepare != nil {
		if err := j.config.Prepare(); err != nil {
			return err
		}
	}
	for _, dir := range []string{j.config.Dir, j.dir("open"), j.dir("done"), j.dir("kept")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fault.Cause(err)
		}
	}
	if err := os.Chmod(j.config.Dir, 0o700); err != nil {
		return fault.Cause(err)
	}
	lock, err := lockFile(j.dir("lock"))
	for until := time.Now().Add(lockWait); errors.Is(err, fault.ErrBusy) && time.Now().Before(until); {
		time.Sleep(lockWait / 100)
		lock, err = lockFile(j.dir("lock"))
	}
	if err != nil {
		return err
	}
	for _, dir := range []string{j.config.Dir, filepath.Dir(j.config.Dir)} {
		if err := j.do("open.syncdir", func() error { return syncDir(dir) }); err != nil {
			return errors.Join(err, lock.Close())
		}
	}
	if err := j.checkFormat(); err != nil {
		return errors.Join(err, lock.Close())
	}
	state, err := fsys.Open(j.config.Dir)
	if err != nil {
		return errors.Join(err, lock.Close())
	}
	newest, unrecovered := int64(0), false
	for _, dir := range []string{"open", "done", "kept"} {
		names, e := os.ReadDir(j.dir(dir))
		err = errors.Join(err, e)
		for _, name := range names {
			newest = max(newest, idTime(name.Name()))
		}
		unrecovered = unrecovered || dir == "open" && len(names) > 0
	}
	if err = errors.Join(err, j.refreshKept()); err != nil {
		return errors.Join(fault.Cause(err), state.Close(), lock.Close())
	}
	if j.ready = false; !unrecovered {
		if err := j.becomeReady(); err != nil {
			return errors.Join(err, state.Close(), lock.Close())
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lock, j.state, j.lastID = lock, state, max(j.lastID, newest)
	if unrecovered {
		j.broken = errUnrecovered
	}
	return nil
}

var errUnrecovered = fault.Wrapf(fault.ErrBusy, "busy: an interrupted transaction is not rolled back yet")

// Close waits until the files of the last transaction are removed, and closes the journal. A transaction that is still open
// stays on disk for the next Recover.
func (j *Journal) Close() error {
	j.cleanups.Wait()
	if j.Unusable() != nil {
		return nil
	}
	if t := j.awaitingTx(); t != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		_ = t.log.close() // nothing is written to it any more
	}
	return errors.Join(j.state.Close(), fault.Cause(j.lock.Close()))
}

// dir returns a path in the journal's directory.
func (j *Journal) dir(elements ...string) string {
	return filepath.Join(append([]string{j.config.Dir}, elements...)...)
}

// do runs an action on the disk. Every action goes through it, so that tests can make each one fail.
func (j *Journal) do(step string, act func() error) error {
	if j.config.Step != nil {
		if err := j.config.Step(step); errors.Is(err, ErrSkip) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return fault.Cause(act())
}

// Header describes a transaction. Every field is optional.
type Header struct {
	// MessageID is the request's; Key names the run, so that it is not done twice.
	MessageID, Key string
	// Port is the name of the port that the request came by. It owns the transaction.
	Port string
	// Fingerprint is the request's, as pb.JournalBegin describes it.
	Fingerprint []byte
	// Script is the script that runs.
	Script *pb.ScriptRef
	// Hide takes the secrets of the request out of a text; nil: it has none. What an operation says that takes something back
	// is sent and recorded without them, and not at all by a recovery, which does not know them.
	Hide func(string) string
}

// Begin waits until no other writer is active, and begins a transaction. If ctx's deadline passes meanwhile, or a transaction
// awaits its confirmation, the error is fault.ErrBusy. Nothing is written before the first step. The caller ends the
// transaction with Close.
func (j *Journal) Begin(ctx context.Context, header Header) (*Tx, error) {
	if err := j.brokenError(); err != nil { // not after a recovery, which may wait for a mount
		return nil, err
	}
	if err := j.acquireWriter(ctx, false); err != nil {
		return nil, err
	}
	_ = j.refreshKept()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		j.writer <- struct{}{}
		return nil, j.broken
	}
	t := &Tx{journal: j, begin: &pb.JournalBegin{
		Version: formatVersion, TransactionId: j.newID(), MessageId: header.MessageID, Key: header.Key, Fingerprint: header.Fingerprint,
		Script: header.Script, MachineId: j.config.MachineID(), BootId: j.config.BootID(), AgentVersion: j.config.Version,
		Started: now(), Port: header.Port, Secrets: header.Hide != nil,
	}, hide: header.Hide}
	j.current = t
	return t, nil
}

// enter begins what writes.
func (j *Journal) enter(ctx context.Context) (leave func(), err error) {
	if j.config.Enter == nil {
		return func() {}, nil
	}
	return j.config.Enter(ctx)
}

// enterAnyway is enter for what ends a transaction, and has to be done whether or not somebody waits for it: a freeze ends by
// itself.
func (j *Journal) enterAnyway() (leave func()) {
	leave, err := j.enter(context.Background())
	if err != nil {
		return func() {} // cannot happen: the context never ends
	}
	return leave
}

// hasFiles reports whether the transaction has written anything.
func (t *Tx) hasFiles() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.log != nil
}

// enterAnyway is that of the journal for a transaction that has written something; any other one ends in memory.
func (t *Tx) enterAnyway() (leave func()) {
	if !t.hasFiles() {
		return func() {}
	}
	return t.journal.enterAnyway()
}

// acquireWriter waits until the caller is the only writer. patient: also for a transaction that awaits its confirmation, by
// which others are refused.
func (j *Journal) acquireWriter(ctx context.Context, patient bool) error {
	for {
		var began <-chan struct{}
		if !patient {
			var err error
			if began, err = j.awaitingError(); err != nil {
				return err
			}
		}
		select {
		case <-j.writer:
			return nil
		default:
		}
		select {
		case <-j.writer:
			return nil
		case <-began:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fault.Wrapf(fault.ErrBusy, "busy: another transaction is open")
			}
			return context.Cause(ctx)
		}
	}
}

// Lock makes the caller the only writer without a transaction, for changes that are not undone. It waits and fails as Begin
// does. The caller calls release when it is done; another call of release does nothing.
func (j *Journal) Lock(ctx context.Context) (release func(), err error) {
	if err := j.brokenError(); err != nil {
		return nil, err
	}
	if err := j.acquireWriter(ctx, false); err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		j.writer <- struct{}{}
		return nil, j.broken
	}
	return sync.OnceFunc(func() { j.writer <- struct{}{} }), nil
}

// Owns returns the id of the open transaction, or of one whose rollback has halted, if that has a before-image of the object
// at a resolved path, or of one below it: a rollback would overwrite a change by others.
func (j *Journal) Owns(path string) (id string, owned bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if t := j.current; t != nil && t.status.owns(path) {
		return t.ID(), true
	}
	for id, u := range j.unfinished {
		if u.status.owns(path) {
			return id, true
		}
	}
	return "", false
}

// noteUnfinished remembers a transaction whose rollback has not ended. reply is that of the run; nil keeps what is known.
func (j *Journal) noteUnfinished(t *Tx, reply *pb.RunScriptResponse) {
	info := t.info()
	info.Phase = "rolling_back"
	j.mu.Lock()
	defer j.mu.Unlock()
	before := j.unfinished[t.ID()]
	if reply == nil {
		reply = before.reply
	}
	j.unfinished[t.ID()] = unfinished{&t.status, info, reply, cmp.Or(t.obstacle, before.obstacle)}
}

// unfinishedInfos describes the transactions whose rollback has not ended. The caller holds mu.
func (j *Journal) unfinishedInfos() []*pb.TransactionInfo {
	var list []*pb.TransactionInfo
	for _, u := range j.unfinished {
		list = append(list, proto.Clone(u.info).(*pb.TransactionInfo))
	}
	slices.SortFunc(list, func(a, b *pb.TransactionInfo) int { return strings.Compare(b.TransactionId, a.TransactionId) })
	return list
}

// Unrecovered receives a value when a transaction was left to Recover by this process: its rollback, or its actions after
// the commit, took longer than the caller's time, or wait for a mount.
func (j *Journal) Unrecovered() <-chan struct{} { return j.unrecovered }

func (j *Journal) askForRecovery() {
	select {
	case j.unrecovered <- struct{}{}:
	default:
	}
}

// brokenError returns why no transaction may begin; nil if one may.
func (j *Journal) brokenError() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.broken
}

// setBroken refuses all further transactions: the next start of the agent must recover first.
func (j *Journal) setBroken(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken == nil {
		j.broken = err
	}
}

// newID returns an id that sorts behind all others here, and by time if nobody sets the clock back. The caller holds
// mu.
func (j *Journal) newID() string {
	var id [10]byte
	_, _ = rand.Read(id[:]) // never fails: the runtime ends the process instead
	j.lastID = max(time.Now().UnixMilli()&maxIDTime, j.lastID+1)
	return fmt.Sprintf("%012x", j.lastID) + hex.EncodeToString(id[:])
}

// maxIDTime is the latest time in an id, in the year 10889.
const maxIDTime = 1<<48 - 1

// idTime returns the time in an id, in milliseconds; 0 if it is no id.
func idTime(id string) int64 {
	n, err := strconv.ParseInt(id[:min(len(id), 12)], 16, 64)
	if err != nil || len(id) < 32 {
		return 0
	}
	return n
}

var _ builtins.Tx = (*Tx)(nil)
