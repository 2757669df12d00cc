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
	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// guest is the real room over the files on a device, and a journal that lies on it, too.
type guest struct {
	dir     string // where the device is mounted
	root    *fsys.Root
	room    *file.Room
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
	g := &guest{dir: dir, root: root, room: file.New(root, file.Config{})}
	g.table = builtins.NewTable(g.room.Ops())
	g.journal, err = journal.Open(journal.Config{
		Dir: filepath.Join(state(dir), "tx"), Root: root, Version: "test", Step: step,
		MachineID: func() string { return "machine" }, BootID: func() string { return "boot" },
		Run: func(ctx context.Context, op string, args proto.Message) error {
			_, err := g.table.Invoke(ctx, &builtins.Call{}, g.table.Script(op), args)
			return err
		},
	})
	if err != nil {
		return nil, errors.Join(err, g.room.Close(), root.Close())
	}
	return g, nil
}

func (g *guest) close() error { return errors.Join(g.journal.Close(), g.room.Close(), g.root.Close()) }

// order is what a process of its own does on a device.
type order struct {
	Dir, Log, Out string
	// Hasty: the kernel writes back all it has after each call. Else nothing reaches the disk that is not synced.
	Hasty   bool
	Variant string
}

// outcome is what the process saw.
type outcome struct {
	Pictures []map[string]string // before the first transaction, and after each
	Acks     []ack
	Syncs    []string // what was synced, in order
	LeftOut  int      // how many of them were not
}

// ack is the moment in which the end of a transaction was acknowledged.
type ack struct {
	Entries int // of the log
	Key     string
	Status  pb.ScriptStatus
}

// transaction is a script. With an error it is rolled back.
type transaction struct {
	key string
	run func(w *worker, tx *journal.Tx) error
}

var errWanted = errors.New("the script fails")

// transactions follow each other: each uses the journal file of the one before it again.
var transactions = []transaction{
	{"first", func(w *worker, tx *journal.Tx) error {
		return w.calls(tx, call{"file.write", &pb.WriteFileArgs{Path: "/etc/first", Content: []byte("changed by the first\n")}})
	}},
	{"synced", func(w *worker, tx *journal.Tx) error { return w.synced(tx) }},
	{"all", func(w *worker, tx *journal.Tx) error { return w.all(tx) }},
	{"fresh", func(w *worker, tx *journal.Tx) error { return w.fresh(tx) }},
	{"moved", func(w *worker, tx *journal.Tx) error {
		if err := tx.Before(context.Background(), "/etc", "/etc/tool"); err != nil { // for the times of the directories
			return err
		}
		return w.calls(tx, call{"file.move", &pb.FromToArgs{From: "/etc/tool/conf", To: "/etc/conf"}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/conf/a", Content: []byte("a = 4\n")}})
	}},
	{"acted", func(w *worker, tx *journal.Tx) error { return w.acted(tx) }},
	{"rolled back", func(w *worker, tx *journal.Tx) error { return errors.Join(w.again(tx), errWanted) }},
}

type call struct {
	op string
	in proto.Message
}

// worker is the process on the device.
type worker struct {
	*guest
	order  order
	device *os.File
}

// calls is what a script does.
func (w *worker) calls(tx *journal.Tx, list ...call) error {
	for _, c := range list {
		tx.Mark()
		if _, err := w.table.Invoke(context.Background(), &builtins.Call{Tx: tx}, w.table.Script(c.op), c.in); err != nil {
			return err
		}
		if err := w.writeBack(); err != nil {
			return err
		}
	}
	return nil
}

// writeBack is what the kernel may do at any time.
func (w *worker) writeBack() error {
	if !w.order.Hasty {
		return nil
	}
	return unix.Syncfs(int(w.device.Fd()))
}

// all replaces, creates, deletes and changes one of everything.
func (w *worker) all(tx *journal.Tx) error {
	return errors.Join(
		w.calls(tx,
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("changed\n")}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/large", Content: large('k'), Backup: true}},
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
		w.command(tx, "2"),
		w.calls(tx, call{"file.write", &pb.WriteFileArgs{Path: "/etc/tool/made-2", Content: []byte("what a command made, changed")}},
			call{"file.chmod", &pb.ChmodArgs{Path: "/etc/tool/dir-2", Mode: "0700"}}))
}

// acted changes what a command made of which only its undo is known.
func (w *worker) acted(tx *journal.Tx) error {
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

// fresh changes again what the transaction itself made, of which nothing was synced.
func (w *worker) fresh(tx *journal.Tx) error {
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

// again changes what the others left.
func (w *worker) again(tx *journal.Tx) error {
	return errors.Join(
		w.calls(tx,
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/large", Content: large('r')}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/two", Content: []byte("and once more"), Inplace: true}},
			call{"file.remove", &pb.RemoveArgs{Path: "/etc/new", Recursive: true}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/new", Content: []byte("no directory")}},
			call{"file.remove", &pb.RemoveArgs{Path: "/etc/link"}},
			call{"file.chmod", &pb.ChmodArgs{Path: "/etc/program", Mode: "0755"}},
			call{"file.write", &pb.WriteFileArgs{Path: "/etc/first", Content: []byte("changed again\n")}}),
		w.command(tx, "3"))
}

// command changes files as a command does that said what it touches: in place, and without any sync.
func (w *worker) command(tx *journal.Tx, value string) error {
	if err := tx.BeforeTree(context.Background(), "/etc/tool"); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(files(w.dir), "etc/tool", name) }
	return errors.Join(
		os.WriteFile(in("db"), large(value[0]), 0),
		os.WriteFile(in("new-pair"), []byte(value), 0o644), // parts the names of one file
		os.Rename(in("new-pair"), in("pair")), os.Rename(in("pair"), in("pair-too")), os.Link(in("pair-too"), in("pair")),
		os.WriteFile(in("made-"+value), []byte(value), 0o600),
		os.MkdirAll(in("dir-"+value+"/sub"), 0o755), os.WriteFile(in("dir-"+value+"/sub/x"), large('x'), 0o644),
		w.writeBack())
}

// synced changes files as a command does that syncs, but only what is its own.
func (w *worker) synced(tx *journal.Tx) error {
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

// work is the life of the process.
func work(o order) (out outcome, err error) {
	leaves := variantNamed(o.Variant)
	watch, err := watchSyncs(leaves.sync)
	if err != nil {
		return outcome{}, err
	}
	device, err := os.Open(o.Dir)
	if err != nil {
		return outcome{}, err
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
		return outcome{}, err
	}
	w := &worker{guest: g, order: o, device: device}
	if err := out.see(w); err != nil {
		return outcome{}, err
	}
	for _, each := range transactions {
		if err := w.one(each, &out); err != nil {
			return outcome{}, fmt.Errorf("%s: %w", each.key, err)
		}
	}
	if err := g.close(); err != nil {
		return outcome{}, err
	}
	out.Syncs, out.LeftOut = watch.end()
	out.LeftOut += skipped
	return out, nil
}

func (o *outcome) see(w *worker) error {
	p, err := picture(files(w.dir))
	o.Pictures = append(o.Pictures, p)
	return err
}

// one is one transaction to its end.
func (w *worker) one(each transaction, out *outcome) error {
	ctx := context.Background()
	tx, err := w.journal.Begin(ctx, journal.Header{MessageID: each.key, Key: each.key})
	if err != nil {
		return err
	}
	reply := &pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED}
	acknowledge := func() error {
		n, err := entries(w.order.Log)
		out.Acks = append(out.Acks, ack{Entries: n, Key: each.key, Status: reply.Status})
		return errors.Join(err, out.see(w))
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

// childVariable tells a process of this test binary that it is a worker, and what to do.
const childVariable = "QUANTIX_BLOCKTEST_CHILD"

func child(text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	out, err := work(o)
	if err != nil {
		return err
	}
	data, err := json.Marshal(out)
	return errors.Join(err, os.WriteFile(o.Out, data, 0o600))
}
