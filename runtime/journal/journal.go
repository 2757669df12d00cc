// Package journal makes changes of the guest one transaction: all of them happened and are durable, or none.
//
//	Begin ─► Before Take Undo: what it was, durable ─► the change ─► … ─┬─► Commit ──┐
//	                                                                    │            ├─► Close: the reply is stored
//	         Recover, after the agent or the guest died ─► undo ◄───────┴─► Rollback ┘
//
// It keeps an undo log: what was there is on disk before it is changed, changes are made in place, and one record that
// reached the disk decides that they stay. There is one writer. What must reach the disk before what, and why, is in
// DESIGN.md.
//
// Not here: deciding whether a call may run, what an operation does, and running scripts.
package journal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Config is what a journal needs.
type Config struct {
	// Dir is the directory that the journal keeps all it needs in. It is made, with mode 0700. Required.
	Dir string
	// Root is the file system that the changes are made in. Required; it stays the caller's.
	Root *fsys.Root
	// Run runs an operation by its name: an inverse on a rollback, an action after a commit. It may be asked again for
	// what it did already. Required where transactions use either.
	Run func(ctx context.Context, op string, args proto.Message) error
	// MachineID and BootID tell one guest from its clone, and one boot from the next. Nil: unknown, always the same.
	MachineID, BootID func() string
	// Version is the agent's, for the records. Optional.
	Version string
	// Expiry is how long the reply of a transaction is kept; 0: 30 days.
	Expiry time.Duration
	// Entries is how many replies are kept; 0: 1000.
	Entries int
	// Step is called before each action on the disk, with the action's name, for tests of what happens when it fails:
	// with the error it returns, or without being done and unnoticed if that is ErrSkip. Nil: nothing.
	Step func(name string) error
}

// ErrSkip lets an action be left out as if it had succeeded; see Config.Step.
var ErrSkip = errors.New("left out")

// The sizes of a journal's files.
const (
	initial = 1 << 20  // of a new journal: room for some dozen small files
	spare   = 4 << 20  // of the largest journal that is used again
	reserve = 64 << 10 // of what only the last record may use, so that an abort never waits for free space
	inline  = 16 << 10 // of the largest file whose content goes into a record: less than two blocks' worth of syncs
)

// attempts is how often a recovery may be interrupted before it is given up.
const attempts = 3

// Journal holds the transactions of one root. It is safe for concurrent use.
type Journal struct {
	config Config
	state  *fsys.Root // Dir
	lock   *os.File
	writer chan struct{} // holds one token: whoever has it may change the guest
	work   sync.WaitGroup

	mu      sync.Mutex
	current *Tx
	broken  error // why no transaction may begin
	kept    []string
	store   store
}

// Open opens the journal, which no other process may have open: then the error is fault.ErrBusy. What it finds unfinished
// must be taken back by Recover before a transaction can begin.
func Open(config Config) (*Journal, error) {
	if config.MachineID == nil {
		config.MachineID = func() string { return "" }
	}
	if config.BootID == nil {
		config.BootID = func() string { return "" }
	}
	if config.Expiry == 0 {
		config.Expiry = 30 * 24 * time.Hour
	}
	if config.Entries == 0 {
		config.Entries = 1000
	}
	j := &Journal{config: config, writer: make(chan struct{}, 1)}
	if err := j.open(); err != nil {
		return nil, fault.On("journal "+config.Dir, err)
	}
	return j, nil
}

func (j *Journal) open() (err error) {
	for _, dir := range []string{j.config.Dir, j.dir("open"), j.dir("done"), j.dir("kept")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fault.Cause(err)
		}
	}
	if err := os.Chmod(j.config.Dir, 0o700); err != nil {
		return fault.Cause(err)
	}
	if j.lock, err = takeLock(j.dir("lock")); err != nil {
		return err
	}
	for _, dir := range []string{j.config.Dir, filepath.Dir(j.config.Dir)} {
		if err := j.do("open.syncdir", func() error { return syncDir(dir) }); err != nil {
			return errors.Join(err, j.lock.Close())
		}
	}
	if j.state, err = fsys.Open(j.config.Dir); err != nil {
		return errors.Join(err, j.lock.Close())
	}
	left, err := os.ReadDir(j.dir("open"))
	err = errors.Join(err, j.lookKept())
	if err == nil && len(left) > 0 {
		j.broken = errUnrecovered
	}
	j.writer <- struct{}{}
	return fault.Cause(err)
}

var errUnrecovered = fault.Wrapf(fault.ErrBusy, "busy: an interrupted transaction is not taken back yet")

// Close waits until the last transaction that ended is cleaned up. A transaction that is still open stays as it is on
// disk, and is taken back by the next Recover.
func (j *Journal) Close() error {
	j.work.Wait()
	return errors.Join(j.state.Close(), fault.Cause(j.lock.Close()))
}

// dir is a path of the journal's own.
func (j *Journal) dir(elements ...string) string {
	return filepath.Join(append([]string{j.config.Dir}, elements...)...)
}

// do is the one way to act on the disk.
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

// Header says what a transaction is for.
type Header struct {
	// MessageID is of the request; Key names the run, so that it is not done twice.
	MessageID, Key string
	// Fingerprint is of the request: see pb.JournalBegin.
	Fingerprint []byte
	// Script is what runs. Optional.
	Script *pb.ScriptRef
}

// Begin waits until the caller is the one writer, and begins a transaction. If ctx's deadline passes meanwhile the error
// is fault.ErrBusy. The disk is not touched before there is something to be kept. The caller ends the transaction with
// Close.
func (j *Journal) Begin(ctx context.Context, header Header) (*Tx, error) {
	if err := j.wait(ctx); err != nil {
		return nil, err
	}
	_ = j.lookKept()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		j.writer <- struct{}{}
		return nil, j.broken
	}
	t := &Tx{journal: j, begin: &pb.JournalBegin{
		Version: version, TransactionId: newID(), MessageId: header.MessageID, Key: header.Key, Fingerprint: header.Fingerprint,
		Script: header.Script, MachineId: j.config.MachineID(), BootId: j.config.BootID(), AgentVersion: j.config.Version,
		Started: now(),
	}}
	j.current = t
	return t, nil
}

func (j *Journal) wait(ctx context.Context) error {
	select {
	case <-j.writer:
		return nil
	default:
	}
	select {
	case <-j.writer:
		return nil
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fault.Wrapf(fault.ErrBusy, "busy: another transaction was open all the time")
		}
		return context.Cause(ctx)
	}
}

// Lock makes the caller the one writer without a transaction, for changes that are not undone. It is as Begin in all
// else; release gives the right back.
func (j *Journal) Lock(ctx context.Context) (release func(), err error) {
	if err := j.wait(ctx); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { j.writer <- struct{}{} }), nil
}

// Owns gives the id of the open transaction if it keeps the object at a resolved path, or one below it: a change by
// others would be lost or in its way.
func (j *Journal) Owns(path string) (id string, owned bool) {
	j.mu.Lock()
	t := j.current
	j.mu.Unlock()
	if t == nil || !t.owns(path) {
		return "", false
	}
	return t.ID(), true
}

// degrade refuses all further transactions: what is on disk must be looked at by a new start first.
func (j *Journal) degrade(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken == nil {
		j.broken = err
	}
}

// newID gives a name that sorts by time.
func newID() string {
	var id [16]byte
	_, _ = rand.Read(id[6:]) // never fails: the runtime ends the process instead
	return fmt.Sprintf("%012x", time.Now().UnixMilli()&(1<<48-1)) + hex.EncodeToString(id[6:])
}

// A Tx is what rooms know of a transaction.
var _ builtins.Tx = (*Tx)(nil)
