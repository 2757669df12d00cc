//go:build blocktest

package blocktest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// guest is the real file room over the files on a device, and a journal on the same device.
type guest struct {
	dir     string // where the device is mounted
	root    *fsys.Root
	room    builtins.Room
	table   *builtins.Table
	journal *journal.Journal
}

func files(dir string) string { return filepath.Join(dir, "root") }
func state(dir string) string { return filepath.Join(dir, "state") }

func start(dir string, step func(string) error) (*guest, error) {
	root, err := fsys.Open(files(dir))
	if err != nil {
		return nil, err
	}
	g := &guest{dir: dir, root: root, room: all.New(all.Config{Files: root, Dir: files(dir)}).Named("file")}
	g.table = builtins.NewTable(g.room)
	g.journal, err = journal.Open(journal.Config{
		Dir: filepath.Join(state(dir), "tx"), Root: root, Version: "test", Step: step,
		MachineID: func() string { return "machine" }, BootID: func() string { return "boot" },
		Run: func(ctx context.Context, op string, args proto.Message) (bool, error) {
			_, err := g.table.Script(op).Call(ctx, &builtins.Call{}, args)
			return false, err
		},
	})
	if err != nil {
		return nil, errors.Join(err, g.room.Close(), root.Close())
	}
	return g, nil
}

func (g *guest) close() error { return errors.Join(g.journal.Close(), g.room.Close(), g.root.Close()) }

// workerConfig tells the worker process what to do.
type workerConfig struct {
	Dir, Log, Out string
	// EarlyWriteback: the kernel writes everything back after each call. Else only what is synced reaches the disk.
	EarlyWriteback bool
	Variant        string
}

// workerResult is what the worker process saw.
type workerResult struct {
	Pictures []map[string]string // before the first transaction, and after each
	Acks     []ack
	Syncs    []string // what was synced, in order
	Skipped  int      // how many syncs were skipped
}

// ack is the acknowledgement of the end of a transaction.
type ack struct {
	Entries int // of the log at that time
	Key     string
	Status  pb.ScriptStatus
}

// transaction is a test transaction. It is rolled back if run returns an error.
type transaction struct {
	key string
	run func(w *worker, tx *journal.Tx) error
}

var errWanted = errors.New("the script fails")

// transactions run one after the other; each reuses the log file of the one before it.
var transactions = []transaction{
	{"first", func(w *worker, tx *journal.Tx) error {
		return w.calls(tx, call{"file.write", &pb.WriteFileArgs{Path: "/etc/first", Content: []byte("changed by the first\n")}})
	}},
	{"synced", func(w *worker, tx *journal.Tx) error { return w.runSyncingCommand(tx) }},
	{"all", func(w *worker, tx *journal.Tx) error { return w.changeEverything(tx) }},
	{"fresh", func(w *worker, tx *journal.Tx) error { return w.changeOwnObjects(tx) }},
	{"moved", func(w *worker, tx *journal.Tx) error {
		if err := tx.Before(context.Background(), "/etc", "/etc/tool"); err != nil { // for the times of the directories
			return err
		}
		return w.calls(tx, call{"file.move", &pb.FromToArgs{From: "/etc/tool/conf", To: "/etc/conf"}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/conf/a", Content: []byte("a = 4\n")}})
	}},
	{"acted", func(w *worker, tx *journal.Tx) error { return w.changeAfterOperation(tx) }},
	{"rolled back", func(w *worker, tx *journal.Tx) error { return errors.Join(w.changeAndRollBack(tx), errWanted) }},
}

type call struct {
	op string
	in proto.Message
}

// worker is the process on the device.
type worker struct {
	*guest
	config workerConfig
	device *os.File
}

// calls invokes operations as a script does.
func (w *worker) calls(tx *journal.Tx, list ...call) error {
	for _, c := range list {
		tx.Mark()
		if _, err := w.table.Script(c.op).Call(context.Background(), &builtins.Call{Tx: tx}, c.in); err != nil {
			return err
		}
		if err := w.writeBack(); err != nil {
			return err
		}
	}
	return nil
}

// writeBack writes everything back, as the kernel may at any time.
func (w *worker) writeBack() error {
	if !w.config.EarlyWriteback {
		return nil
	}
	return unix.Syncfs(int(w.device.Fd()))
}

// changeEverything replaces, creates, removes and changes objects of every kind.
func (w *worker) changeEverything(tx *journal.Tx) error {
	return errors.Join(
		w.calls(tx,
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("changed\n")}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/large", Content: largeContent('k'), Backup: true}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/new/er/file", Content: []byte("new"), Parents: true}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/new/er/file", Content: []byte("new, and changed at once")}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/two", Content: []byte("both names"), Inplace: true}},
			call{"file.chmod", &pb.ChmodArgs{Path: "/etc/program", Mode: "0700"}},
			call{"file.symlink", &pb.SymlinkArgs{Path: "/etc/link", Target: "large"}},
			call{"file.symlink", &pb.SymlinkArgs{Path: "/etc/link2", Target: "large"}},
			call{"file.remove", &pb.RemoveArgs{Path: "/etc/app.d", Recursive: true}},
			call{"file.mkdir", &pb.MkdirArgs{Path: "/etc/app.d"}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/app.d/one", Content: []byte("another")}},
			call{"file.append", &pb.WriteFileArgs{Path: "/etc/app.d/one", Content: []byte(" one")}},
			call{"file.remove", &pb.RemoveArgs{Path: "/etc/empty"}}),
		w.runCommand(tx, "2"),
		w.calls(tx, call{"file.write", &pb.WriteFileArgs{Path: "/etc/tool/made-2", Content: []byte("what a command made, changed")}},
			call{"file.chmod", &pb.ChmodArgs{Path: "/etc/tool/dir-2", Mode: "0700"}}))
}

// changeAfterOperation changes what a command made that announced only an inverse, and no paths.
func (w *worker) changeAfterOperation(tx *journal.Tx) error {
	if err := tx.Before(context.Background(), "/etc"); err != nil { // for the time of the directory
		return err
	}
	if err := tx.Undo(context.Background(), "file.remove", &pb.RemoveArgs{Path: "/etc/acted", Recursive: true}); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(files(w.dir), "etc/acted", name) }
	return errors.Join(
		os.MkdirAll(in("deep"), 0o755), os.WriteFile(in("deep/conf"), []byte("a command made this"), 0o644), w.writeBack(),
		w.calls(tx,
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/acted/deep/conf", Content: []byte("and this was changed")}},
			call{"file.chmod", &pb.ChmodArgs{Path: "/etc/acted/deep", Mode: "0700"}},
			call{"file.remove", &pb.RemoveArgs{Path: "/etc/acted/deep", Recursive: true}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/acted/deep", Content: []byte("no directory")}}))
}

// changeOwnObjects changes objects again that the transaction itself made, and nobody synced.
func (w *worker) changeOwnObjects(tx *journal.Tx) error {
	return w.calls(tx,
		call{"file.mkdir", &pb.MkdirArgs{Path: "/etc/fresh"}},
		call{"file.mkdir", &pb.MkdirArgs{Path: "/etc/fresh/sub"}},
		call{"file.chmod", &pb.ChmodArgs{Path: "/etc/fresh/sub", Mode: "0700"}},
		call{"file.symlink", &pb.SymlinkArgs{Path: "/etc/fresh/link", Target: "a"}},
		call{"file.symlink", &pb.SymlinkArgs{Path: "/etc/fresh/link", Target: "b"}},
		call{"file.symlink", &pb.SymlinkArgs{Path: "/etc/fresh/gone", Target: "c"}},
		call{"file.remove", &pb.RemoveArgs{Path: "/etc/fresh/gone"}},
		call{"file.mkdir", &pb.MkdirArgs{Path: "/etc/fresh/tree"}},
		call{"file.mkdir", &pb.MkdirArgs{Path: "/etc/fresh/tree/below"}},
		call{"file.move", &pb.FromToArgs{From: "/etc/fresh/tree", To: "/etc/fresh/moved"}},
		call{"file.remove", &pb.RemoveArgs{Path: "/etc/fresh/moved", Recursive: true}},
		call{"file.chmod", &pb.ChmodArgs{Path: "/etc/tool/dir-2/sub", Mode: "0711"}})
}

// changeAndRollBack changes what the transactions before it left.
func (w *worker) changeAndRollBack(tx *journal.Tx) error {
	return errors.Join(
		w.calls(tx,
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/large", Content: largeContent('r')}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/two", Content: []byte("and once more"), Inplace: true}},
			call{"file.remove", &pb.RemoveArgs{Path: "/etc/new", Recursive: true}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/new", Content: []byte("no directory")}},
			call{"file.remove", &pb.RemoveArgs{Path: "/etc/link"}},
			call{"file.chmod", &pb.ChmodArgs{Path: "/etc/program", Mode: "0755"}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/first", Content: []byte("changed again\n")}}),
		w.runCommand(tx, "3"))
}

// runCommand changes a declared tree as a command does: in place, and without any sync.
func (w *worker) runCommand(tx *journal.Tx, value string) error {
	if err := tx.BeforeTree(context.Background(), "/etc/tool"); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(files(w.dir), "etc/tool", name) }
	return errors.Join(
		os.WriteFile(in("db"), largeContent(value[0]), 0),
		os.WriteFile(in("new-pair"), []byte(value), 0o644), // separates the two names of one file
		os.Rename(in("new-pair"), in("pair")), os.Rename(in("pair"), in("pair-too")), os.Link(in("pair-too"), in("pair")),
		os.WriteFile(in("made-"+value), []byte(value), 0o600),
		os.MkdirAll(in("dir-"+value+"/sub"), 0o755), os.WriteFile(in("dir-"+value+"/sub/x"), largeContent('x'), 0o644),
		w.writeBack())
}

// runSyncingCommand changes a declared tree as a command does that syncs some of its files.
func (w *worker) runSyncingCommand(tx *journal.Tx) error {
	if err := tx.BeforeTree(context.Background(), "/etc/tool"); err != nil {
		return err
	}
	dir := filepath.Join(files(w.dir), "etc/tool")
	db, err := os.OpenFile(filepath.Join(dir, "db"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = db.WriteAt([]byte("overwritten"), 2*block)
	err = errors.Join(err, db.Sync(), db.Close(),
		os.WriteFile(filepath.Join(dir, "new"), []byte("another file"), 0o644), os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "pair")))
	if err != nil {
		return err
	}
	tool, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(tool.Sync(), tool.Close(), w.writeBack())
}

// runWorker is the main function of the worker process.
func runWorker(o workerConfig) (out workerResult, err error) {
	leaves := omissionOf(o.Variant)
	watch, err := watchSyncs(leaves.sync)
	if err != nil {
		return workerResult{}, err
	}
	device, err := os.Open(o.Dir)
	if err != nil {
		return workerResult{}, err
	}
	defer device.Close()
	skipped := 0
	g, err := start(o.Dir, func(step string) error {
		if leaves.step != nil && leaves.step(step) {
			skipped++
			return journal.ErrSkip
		}
		return nil
	})
	if err != nil {
		return workerResult{}, err
	}
	w := &worker{guest: g, config: o, device: device}
	if err := out.addPicture(w); err != nil {
		return workerResult{}, err
	}
	for _, each := range transactions {
		if err := w.runTransaction(each, &out); err != nil {
			return workerResult{}, fmt.Errorf("%s: %w", each.key, err)
		}
	}
	if err := g.close(); err != nil {
		return workerResult{}, err
	}
	out.Syncs, out.Skipped = watch.result()
	out.Skipped += skipped
	return out, nil
}

func (o *workerResult) addPicture(w *worker) error {
	p, err := describeTree(files(w.dir))
	o.Pictures = append(o.Pictures, p)
	return err
}

// runTransaction runs a transaction to its end.
func (w *worker) runTransaction(each transaction, out *workerResult) error {
	ctx := context.Background()
	tx, err := w.journal.Begin(ctx, journal.Header{MessageID: each.key, Key: each.key})
	if err != nil {
		return err
	}
	reply := &pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED}
	acknowledge := func() error {
		n, err := countEntries(w.config.Log)
		out.Acks = append(out.Acks, ack{Entries: n, Key: each.key, Status: reply.Status})
		return errors.Join(err, out.addPicture(w))
	}
	err = each.run(w, tx)
	switch {
	case errors.Is(err, errWanted):
		report := tx.Rollback(ctx)
		reply.Status = report.Status()
		if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			return fmt.Errorf("rollback: %+v", report)
		}
		return errors.Join(tx.Close(ctx, reply), acknowledge(), w.writeBack())
	case err != nil:
		return err
	}
	return errors.Join(tx.Commit(ctx, reply), acknowledge(), w.writeBack(), tx.Close(ctx, reply))
}

// childEnv tells a process of this test binary that it is a worker, and what to do.
const childEnv = "QUANTIX_BLOCKTEST_CHILD"

func child(text string) error {
	var o workerConfig
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	out, err := runWorker(o)
	if err != nil {
		return err
	}
	data, err := json.Marshal(out)
	return errors.Join(err, os.WriteFile(o.Out, data, 0o600))
}
