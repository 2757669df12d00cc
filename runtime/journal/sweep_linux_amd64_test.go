package journal

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The sweep kills a process at each system call that changes a file, in a transaction and in the recovery after it, and
// then lets a second recovery end:
//
//	go test ./runtime/journal -run Sweep -sweep=full
//
// does all pairs of places; without the flag a sample is done.
func TestSweep(t *testing.T) {
	for name := range scenarios {
		t.Run(name, func(t *testing.T) { sweepScenario(t, name) })
	}
}

// childEnv tells a process of this test binary that it is a child, and what to do.
const childEnv = "QUANTIX_JOURNAL_TEST_CHILD"

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		if err := child(what, testDirs{os.Args[1], os.Args[2]}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	os.Exit(m.Run())
}

// scenarios are transactions; nil commits, an error rolls back.
var scenarios = map[string]func(g *guest, tx *Tx, p testDirs) error{
	"replace": func(g *guest, tx *Tx, _ testDirs) error {
		return g.calls(tx, sampleCalls()[:2])
	},
	"replace, rolled back": func(g *guest, tx *Tx, _ testDirs) error {
		return errors.Join(g.calls(tx, sampleCalls()[:2]), errWanted)
	},
	"create and change in place": func(g *guest, tx *Tx, _ testDirs) error {
		return g.calls(tx, sampleCalls()[2:8])
	},
	"create and change in place, rolled back": func(g *guest, tx *Tx, _ testDirs) error {
		return errors.Join(g.calls(tx, sampleCalls()[2:8]), errWanted)
	},
	"remove and create": func(g *guest, tx *Tx, _ testDirs) error {
		return g.calls(tx, sampleCalls()[8:12])
	},
	"remove and create, rolled back": func(g *guest, tx *Tx, _ testDirs) error {
		return errors.Join(g.calls(tx, sampleCalls()[8:12]), errWanted)
	},
	"move": func(g *guest, tx *Tx, _ testDirs) error {
		// file.move announces its inverse; the times of the directories need a before-image.
		if err := tx.Before(context.Background(), "/etc", "/etc/app.d/deep"); err != nil {
			return err
		}
		return g.calls(tx, []call{
			{"file.move", &pb.FromToArgs{From: "/etc/app.d/deep/er", To: "/etc/moved"}},
			{"file.move", &pb.FromToArgs{From: "/etc/small", To: "/etc/large"}},
		})
	},
	"a command that touches a tree": func(g *guest, tx *Tx, p testDirs) error {
		if _, err := tx.BeforeTouch(context.Background(), "/etc/app.d", "/etc/nothing"); err != nil {
			return err
		}
		in := func(name string) string { return filepath.Join(p.files, "etc", name) }
		err := errors.Join(
			os.RemoveAll(in("app.d/deep")), os.Remove(in("app.d/also-two")), os.WriteFile(in("app.d/also-two"), []byte("own"), 0o600),
			os.WriteFile(in("app.d/one"), []byte("in place"), 0), os.Mkdir(in("app.d/new"), 0o700), os.WriteFile(in("app.d/new/x"), nil, 0o600),
			os.MkdirAll(in("nothing/at/all"), 0o755), os.WriteFile(in("nothing/at/all/x"), largeContent('x'), 0o644))
		undeclared, checkErr := tx.UndeclaredChanges(context.Background(), "a command")
		if len(undeclared) > 0 {
			checkErr = fmt.Errorf("undeclared changes: %v", undeclared)
		}
		return errors.Join(err, checkErr, g.calls(tx, sampleCalls()[:1]), errWanted)
	},
	"objects that come and go": func(g *guest, tx *Tx, _ testDirs) error {
		write := func(path, content string) call {
			return call{"file.write", &pb.WriteFileArgs{Path: path, Content: []byte(content), Parents: true}}
		}
		remove := func(path string) call { return call{"file.remove", &pb.RemoveArgs{Path: path, Recursive: true}} }
		return errors.Join(g.calls(tx, []call{
			write("/new/a", "1"), write("/new/a", "2"), remove("/new/a"), write("/new/a/b", "3"), remove("/new"),
			write("/new", "4"), remove("/etc/app.d/deep"), write("/etc/app.d/deep", "5"),
		}), errWanted)
	},
	"a call that fails in the middle": func(g *guest, tx *Tx, _ testDirs) error {
		if err := g.calls(tx, sampleCalls()[:1]); err != nil {
			return err
		}
		mark := tx.Mark()
		if err := g.calls(tx, sampleCalls()[1:3]); err != nil {
			return err
		}
		return errors.Join(tx.Revert(context.Background(), mark), g.calls(tx, sampleCalls()[2:3]))
	},
	"awaited and confirmed": func(g *guest, tx *Tx, _ testDirs) error {
		return errors.Join(g.calls(tx, sampleCalls()[:8]), awaitAndExtend(g, tx))
	},
	"awaited and taken back": func(g *guest, tx *Tx, _ testDirs) error {
		return errors.Join(g.calls(tx, sampleCalls()[:10]), awaitAndExtend(g, tx), errWanted)
	},
}

// awaitAndExtend lets a transaction await its confirmation, with a deadline that is then set anew.
func awaitAndExtend(g *guest, tx *Tx) error {
	ctx := context.Background()
	return errors.Join(
		tx.Await(ctx, committedReply(), g.journal.Within(time.Minute)), tx.Await(ctx, committedReply(), g.journal.Within(time.Hour)))
}

var errWanted = errors.New("the script fails")

func (g *guest) calls(tx *Tx, list []call) error {
	for _, c := range list {
		tx.Mark()
		if _, err := g.table.Script(c.op).Call(context.Background(), &builtins.Call{Tx: tx}, c.in); err != nil {
			return err
		}
	}
	return nil
}

// acknowledged is what a child prints once its transaction is committed.
const acknowledged = "committed"

// child is the main function of the process that may be killed.
func child(what string, p testDirs) error {
	if err := traceWrites(); err != nil {
		return err
	}
	g, err := openGuest(p, nil)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if what == "recover" {
		list, err := g.journal.Recover(ctx, nil)
		for _, r := range list {
			if r.Err != nil || r.Report.Err != nil {
				err = errors.Join(err, r.Err, r.Report.Err)
			}
			if r.Tx != nil { // nobody confirms it
				r.Report = r.Tx.TakeBack(ctx, &pb.ScriptError{Kind: "timeout"})
				err = errors.Join(err, r.Report.Err, r.Tx.Close(ctx, &pb.RunScriptResponse{Status: r.Report.Status()}))
			}
			for _, u := range r.Report.Steps {
				if u.Err != nil || u.Conflict != "" {
					err = errors.Join(err, fmt.Errorf("%s %s (conflict %q): %w", u.Op, u.Target, u.Conflict, u.Err))
				}
			}
		}
		return errors.Join(err, g.close())
	}
	tx, err := g.journal.Begin(ctx, Header{MessageID: "m", Key: "k"})
	if err != nil {
		return err
	}
	err = scenarios[what](g, tx, p)
	if err == nil {
		if err = tx.Commit(ctx, committedReply()); err == nil {
			fmt.Println(acknowledged)
		}
	}
	reply := committedReply()
	if err != nil {
		report := tx.TakeBack(ctx, &pb.ScriptError{Kind: "timeout"})
		reply.Status = report.Status()
	}
	if !errors.Is(err, errWanted) && err != nil {
		return err
	}
	return errors.Join(tx.Close(ctx, reply), g.close())
}

// traceWrites stops this process for the tracer at every system call that changes a file.
func traceWrites() error {
	const load, equal, set, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	writes := []uint32{
		unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_UNLINKAT,
		unix.SYS_MKDIRAT, unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_MKNODAT, unix.SYS_FCHMODAT, unix.SYS_CHMOD, unix.SYS_FCHOWNAT,
		unix.SYS_SETXATTR, unix.SYS_REMOVEXATTR, unix.SYS_UTIMENSAT, unix.SYS_COPY_FILE_RANGE, unix.SYS_SENDFILE, unix.SYS_SPLICE,
	}
	filter := []unix.SockFilter{{Code: load, K: 0}}
	for i, nr := range writes {
		filter = append(filter, unix.SockFilter{Code: equal, K: nr, Jt: uint8(len(writes) - i + 3)})
	}
	filter = append(filter,
		unix.SockFilter{Code: equal, K: unix.SYS_OPENAT, Jf: 2},
		unix.SockFilter{Code: load, K: 16 + 2*8}, // the flags
		unix.SockFilter{Code: set, K: unix.O_CREAT, Jt: 1},
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_TRACE})
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := syscall.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}

// outcome is how a child ended.
type outcome struct {
	killed bool // at the requested system call
	acked  bool
	calls  int // that changed files
}

// trace runs a child, and kills it at the nth call that changes a file; 0: never.
func trace(t *testing.T, what string, p testDirs, n int) outcome {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", p.files, p.state)
	cmd.Env = append(os.Environ(), childEnv+"="+what, "GORACE=atexit_sleep_ms=0") // the race detector would wait for a second
	out, err := os.CreateTemp(t.TempDir(), "out")                                 // a file: a pipe would need a goroutine that reads
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	result, status := follow(t, cmd.Process.Pid, n)
	_ = cmd.Process.Release()
	said, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	result.acked = bytes.Contains(said, []byte(acknowledged+"\n"))
	if !result.killed && status != 0 {
		t.Fatalf("%s: exit status %d: %s", what, status, said)
	}
	return result
}

// follow waits for a traced process and its threads to their end.
func follow(t *testing.T, pid, n int) (outcome, int) {
	t.Helper()
	result := outcome{}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || !status.Stopped() {
		t.Fatalf("the child did not stop: %v %v", status, err)
	}
	const options = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(pid, options); err != nil {
		t.Fatal(err)
	}
	tid := pid
	deliver := 0
	for {
		if err := unix.PtraceCont(tid, deliver); err != nil && err != unix.ESRCH {
			t.Fatal(err)
		}
		var err error
		for {
			if tid, err = unix.Wait4(-1, &status, unix.WALL, nil); err != unix.EINTR {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		deliver = 0
		switch {
		case tid == pid && (status.Exited() || status.Signaled()):
			return result, status.ExitStatus()
		case !status.Stopped():
			continue
		case status.TrapCause() == unix.PTRACE_EVENT_SECCOMP:
			result.calls++
			if result.calls == n {
				result.killed = true
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		case status.StopSignal() != unix.SIGTRAP && status.StopSignal() != unix.SIGSTOP:
			deliver = int(status.StopSignal())
		}
	}
}

func sweepScenario(t *testing.T, name string) {
	p := newMemoryDirs(t)
	before := mustDescribeTree(t, p.files)
	whole := trace(t, name, p, 0)
	after := withoutTimes(mustDescribeTree(t, p.files))
	if whole.calls < 10 {
		t.Fatalf("only %d calls change files", whole.calls)
	}
	pairs, sample := 0, newSample()
	places := rand.Perm(whole.calls)
	for i := 0; i < len(places) && !sample.exhausted(); i++ {
		n := places[i] + 1
		for m := 1; ; m++ {
			pairs++
			last := killTwice(t, name, before, after, n, m)
			if t.Failed() {
				t.Fatalf("killed at call %d of the transaction, and %d of the recovery", n, m)
			}
			if last {
				break
			}
			if *sweep != "full" {
				m += rand.IntN(40)
			}
		}
	}
	t.Logf("%d calls of the transaction, %d pairs", whole.calls, pairs)
}

// killTwice kills a transaction at its nth call and the recovery at its mth, and recovers again. last: the recovery has no
// mth call.
func killTwice(t *testing.T, name string, before, after map[string]string, n, m int) (last bool) {
	p := newMemoryDirs(t)
	defer os.RemoveAll(filepath.Dir(p.files))
	run := trace(t, name, p, n)
	if run.killed {
		last = !trace(t, "recover", p, m).killed
		if !last {
			trace(t, "recover", p, 0)
		}
	} else {
		last = true
	}
	now := mustDescribeTree(t, p.files)
	was, is := differences(before, now), differences(after, withoutTimes(now))
	if was != "" && is != "" {
		t.Errorf("neither as before nor as after.\nNot as before:\n%s\nNot as after:\n%s", was, is)
	}
	if run.acked && is != "" {
		t.Errorf("acknowledged, and not as after:\n%s", is)
	}
	checkStored(t, p, was == "", run.acked)
	return last
}

// checkStored compares what the journal stored with what is there.
func checkStored(t *testing.T, p testDirs, asBefore, acked bool) {
	g, err := openGuest(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	for _, dir := range []string{"open", "kept"} {
		if left, err := os.ReadDir(filepath.Join(p.state, dir)); err != nil || len(left) > 0 {
			t.Errorf("%s holds %v, %v", dir, left, err)
		}
	}
	entry, err := g.journal.Stored(Ref{Key: "k"})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if !asBefore || acked {
			t.Errorf("nothing is stored of what happened")
		}
	case err != nil:
		t.Error(err)
	case asBefore != (entry.Reply.Status == pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK):
		t.Errorf("stored is %s, and all is as before: %v", entry.Reply.Status, asBefore)
	}
}
