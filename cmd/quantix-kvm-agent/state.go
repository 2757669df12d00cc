package main

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// openJournal opens the journal of the state directory. table is asked for when something must be taken back.
func openJournal(f flags, root *fsys.Root, table func() *builtins.Table) (*journal.Journal, error) {
	return journal.Open(journal.Config{
		Dir: filepath.Join(f.stateDir(), "tx"), Root: root, Version: version,
		MachineID: func() string { return readLine(filepath.Join(f.root, "/etc/machine-id")) },
		BootID:    func() string { return readLine("/proc/sys/kernel/random/boot_id") },
		Run: func(ctx context.Context, name string, args proto.Message) error {
			op := table().Script(name)
			if op == nil {
				return fault.Unsupported("%s is not supported by this agent", name)
			}
			_, err := table().Invoke(ctx, &builtins.Call{ID: "journal", TakesBack: true}, op, args)
			return err
		},
	})
}

// pretend gives the file systems of dry runs. What those of a former agent left goes.
func pretend(f flags, root *fsys.Root) (func() (*fsys.Root, error), error) {
	dir := filepath.Join(f.stateDir(), "plans")
	err := os.RemoveAll(dir)
	return func() (*fsys.Root, error) { return root.Pretend(filepath.Join(dir, rand.Text())) }, err
}

// readLine gives the first line of a file; empty where it cannot be read.
func readLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

// secret is a random key that stays the same as long as the state directory does.
func secret(dir string) ([]byte, error) {
	path := filepath.Join(dir, "key")
	key, err := os.ReadFile(path)
	if err == nil && len(key) == 32 {
		return key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key = make([]byte, 32)
	rand.Read(key)
	temp, err := os.CreateTemp(dir, ".key-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(key)
	if err = errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return nil, err
	}
	return key, os.Rename(temp.Name(), path)
}

// recovery takes back what an earlier agent left, while ping is answered already. All else is refused until it is done.
type recovery struct {
	done   chan struct{} // closed when it is
	events []*pb.ErrorEvent
	ended  time.Time
}

// patience is how long a request waits for a recovery, which mostly has nothing to do.
const patience = time.Second

func newRecovery() *recovery { return &recovery{done: make(chan struct{})} }

func (r *recovery) run(ctx context.Context, rooms *all.Rooms, manager *script.Manager, log *zap.Logger) {
	err := rooms.Sweep(ctx)
	var events []*pb.ErrorEvent
	if err == nil {
		events, err = manager.Recover(ctx)
	}
	for _, e := range events {
		log.Warn(e.Message, zap.Any("details", e.Details))
	}
	if err != nil && ctx.Err() != nil {
		log.Info("the recovery was stopped; the next start goes on with it")
	} else if err != nil {
		log.Error("recovery did not end well", zap.Error(err))
		events = append(events, &pb.ErrorEvent{Severity: pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL, Code: "recovery", Message: err.Error()})
	}
	r.events, r.ended = events, time.Now()
	close(r.done)
}

// gate refuses requests until the recovery is done.
func (r *recovery) gate(ctx context.Context) error {
	select {
	case <-r.done: // as nearly always: a timer would cost more than all the rest of this
		return nil
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fault.Wrapf(fault.ErrBusy, "busy: recovering from an interruption")
	}
}

// notices are what hosts are told of it.
func (r *recovery) notices() []*pb.ErrorEvent {
	events, _ := r.result()
	return events
}

// result is what became of it, if it is done.
func (r *recovery) result() (events []*pb.ErrorEvent, done bool) {
	select {
	case <-r.done:
		return r.events, true
	default:
		return nil, false
	}
}
