package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// childEnv tells a process of this test binary that it is a child, and what to do.
const childEnv = "QUANTIX_JOURNAL_TEST_CHILD"

// killEnv is the number of the action on the disk before which a child is ended by TerminateProcess; 0 or nothing: none.
const killEnv = "QUANTIX_JOURNAL_TEST_KILL"

// points counts the actions on the disk of a child.
var points int

// pointReached ends this process before the action that killEnv names.
func pointReached(string) error {
	points++
	if strconv.Itoa(points) == os.Getenv(killEnv) {
		_ = windows.TerminateProcess(windows.CurrentProcess(), killed)
	}
	return nil
}

// killed is the status of a process that pointReached has ended.
const killed = 77

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		if err := child(what, os.Args[1], os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// guest is a scratch file system with the real file room and a journal.
type guest struct {
	files   *fsys.Root
	room    builtins.Room
	table   *builtins.Table
	journal *Journal
}

func openGuest(state string) (*guest, error) {
	files, err := fsys.Open("")
	if err != nil {
		return nil, err
	}
	g := &guest{files: files, room: all.New(all.Config{Files: files}).Named("file")}
	g.table = builtins.NewTable(g.room)
	g.journal, err = Open(Config{
		Dir: state, Root: files, Version: "test",
		Step:      pointReached,
		MachineID: func() string { return "machine" }, BootID: func() string { return "boot" },
		Run: func(ctx context.Context, op string, args proto.Message) (idle bool, err error) {
			_, err = g.table.Script(op).Call(ctx, &builtins.Call{}, args)
			return false, err
		},
	})
	return g, err
}

func (g *guest) close() error {
	err := g.journal.Close()
	_ = g.room.Close()
	return errors.Join(err, g.files.Close())
}

// fill makes what the transactions of the sweep change.
func fill(dir string) error {
	for name, content := range map[string]string{
		"small": "of before", "large": strings.Repeat("large\r\n", 30000), "gone": "x", `sub\a`: "a",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Join(dir, "small"), 0o400)
}

// change is the transaction of the sweep.
func (g *guest) change(tx *Tx, dir string) error {
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, c := range []struct {
		op string
		in proto.Message
	}{
		{"file.write", &pb.WriteFileArgs{Path: in("small"), Content: []byte("of after")}},
		{"file.write", &pb.WriteFileArgs{Path: in("large"), Content: bytes.Repeat([]byte("other\n"), 30000)}},
		{"file.write", &pb.WriteFileArgs{Path: in(`new\deep\x`), Content: []byte("new"), Parents: true}},
		{"file.append", &pb.WriteFileArgs{Path: in(`sub\a`), Content: []byte(" and more")}},
		{"file.remove", &pb.RemoveArgs{Path: in("gone")}},
		{"file.move", &pb.FromToArgs{From: in(`sub\a`), To: in("moved")}},
		{"file.remove", &pb.RemoveArgs{Path: in("sub"), Recursive: true}},
	} {
		tx.Mark()
		if _, err := g.table.Script(c.op).Call(context.Background(), &builtins.Call{Tx: tx}, c.in); err != nil {
			return fmt.Errorf("%s: %w", c.op, err)
		}
	}
	return nil
}

var errWanted = errors.New("the script fails")

// child is the main function of the process that may be killed.
func child(what, dir, state string) error {
	g, err := openGuest(state)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if what == "recover" {
		list, err := g.journal.Recover(ctx, nil)
		for _, r := range list {
			err = errors.Join(err, r.Err, r.Report.Err)
			for _, u := range r.Report.Steps {
				if u.Err != nil || u.Conflict != "" {
					err = errors.Join(err, fmt.Errorf("%s %s (conflict %q): %w", u.Op, u.Target, u.Conflict, u.Err))
				}
			}
		}
		err = errors.Join(err, g.close())
		fmt.Println("points", points)
		return err
	}
	tx, err := g.journal.Begin(ctx, Header{MessageID: "m", Key: "k"})
	if err != nil {
		return err
	}
	err = g.change(tx, dir)
	if what == "roll back" {
		err = errors.Join(err, errWanted)
	}
	reply := &pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED}
	if err == nil {
		if err = tx.Commit(ctx, reply); err == nil {
			fmt.Println("committed")
		}
	}
	if err != nil {
		reply.Status = tx.TakeBack(ctx, &pb.ScriptError{Kind: "timeout"}).Status()
		if !strings.Contains(err.Error(), errWanted.Error()) || strings.Contains(err.Error(), "\n") && !errors.Is(err, errWanted) {
			return err
		}
	}
	err = errors.Join(tx.Close(ctx, reply), g.close())
	fmt.Println("points", points)
	return err
}

// tree describes all that is below a directory, but for the times of directories and of what is new.
func describeFiles(t *testing.T, dir string) string {
	t.Helper()
	files, err := fsys.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	var all []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		at, err := files.At(path)
		if err != nil {
			return err
		}
		defer at.Close()
		meta, err := at.Capture()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %s %q", path[len(dir):], meta.Kind, meta.Xattrs)
		if meta.Kind == fsys.File {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %.20q", len(content), content)
		}
		all = append(all, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

// start starts a child in the directories.
func start(t *testing.T, what, dir, state string, env ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	for attempt := 1; ; attempt++ {
		cmd := exec.Command(os.Args[0], dir, state)
		cmd.Env = append(append(os.Environ(), childEnv+"="+what), env...)
		said := &bytes.Buffer{}
		cmd.Stdout, cmd.Stderr = said, said
		err := cmd.Start()
		if err == nil {
			return cmd, said
		}
		if attempt == startAttempts {
			t.Fatal(err)
		}
	}
}

// startAttempts bounds how often a process is started that does not start: one in some hundred of Wine does not, or ends before
// the program has begun, with status 1 and without a word.
const startAttempts = 3

// finish runs a child to its end, and says what it said and how it ended.
func finish(t *testing.T, what, dir, state string, env ...string) (said string, status int) {
	t.Helper()
	for range startAttempts {
		cmd, out := start(t, what, dir, state, env...)
		_ = cmd.Wait() // the status says it
		said, status = out.String(), cmd.ProcessState.ExitCode()
		if status != 1 || said != "" {
			break
		}
	}
	return said, status
}

// run runs a child to its end, and returns how many actions on the disk it had.
func run(t *testing.T, what, dir, state string) int {
	t.Helper()
	said, status := finish(t, what, dir, state)
	_, count, _ := strings.Cut(said, "points ")
	n, err := strconv.Atoi(strings.TrimSpace(count))
	if err != nil || status != 0 {
		t.Fatalf("%s: status %d: %s", what, status, said)
	}
	return n
}

// killAt runs a child that ends itself before an action, and returns what it said and whether it got there.
func killAt(t *testing.T, what, dir, state string, point int) (said string, got bool) {
	t.Helper()
	said, status := finish(t, what, dir, state, killEnv+"="+strconv.Itoa(point))
	if status != 0 && status != killed {
		t.Fatalf("%s, to be killed at %d: status %d: %s", what, point, status, said)
	}
	return said, status == killed
}

// roundsOf is how many rounds QUANTIX_ROUNDS asks for, or what is given.
func roundsOf(t *testing.T, otherwise int) int {
	text := os.Getenv("QUANTIX_ROUNDS")
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// newDirs makes what a transaction changes, and the directory of the journal.
func newDirs(t *testing.T) (dir, state string) {
	base := t.TempDir()
	dir, state = filepath.Join(base, "files"), filepath.Join(base, "state", "tx")
	if err := errors.Join(os.MkdirAll(filepath.Dir(state), 0o755), fill(dir)); err != nil {
		t.Fatal(err)
	}
	return dir, state
}

// Of a transaction that has ended nothing stays open, whether it was committed or rolled back, and the next one finds the log
// that is kept for it.
func TestNothingIsLeftOfATransaction(t *testing.T) {
	for _, what := range []string{"commit", "roll back"} {
		dir, state := newDirs(t)
		run(t, what, dir, state)
		left, err := os.ReadDir(filepath.Join(state, "open"))
		if err != nil || len(left) > 0 {
			t.Errorf("%s leaves %v, %v", what, left, err)
		}
		if _, err := os.Stat(filepath.Join(state, "spare")); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		g, err := openGuest(state)
		if err != nil {
			t.Fatal(err)
		}
		if list, err := g.journal.Recover(t.Context(), nil); err != nil || len(list) > 0 {
			t.Errorf("%s leaves %+v to recover, %v", what, list, err)
		}
		tx, err := g.journal.Begin(t.Context(), Header{MessageID: "n"})
		if err != nil {
			t.Fatal(err)
		}
		reply := &pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED}
		if err := errors.Join(tx.Commit(t.Context(), reply), tx.Close(t.Context(), reply), g.close()); err != nil {
			t.Error(err)
		}
	}
}

// A process that is ended by TerminateProcess before any action of the journal on the disk, and again before any action of the
// recovery, leaves all as it was or, where it had said so, all done. QUANTIX_ROUNDS says how many of the pairs are taken: they
// are spread over all points of the transaction, each with another one of the recovery.
func TestSweepOfFaultPoints(t *testing.T) {
	rounds := roundsOf(t, 5)
	for _, what := range []string{"commit", "roll back"} {
		t.Run(what, func(t *testing.T) {
			dir, state := newDirs(t)
			before := describeFiles(t, dir)
			all := run(t, what, dir, state)
			after, inRecovery, reached, again := describeFiles(t, dir), 1, 0, 0
			for round := range rounds {
				point := 1 + round*all/rounds
				dir, state := newDirs(t)
				said, got := killAt(t, what, dir, state, point)
				if !got {
					t.Fatalf("point %d of %d was not reached: %s", point, all, said)
				}
				reached++
				inner := 1 + round*7%inRecovery
				if _, got := killAt(t, "recover", dir, state, inner); got {
					again++
				}
				inRecovery = max(inRecovery, run(t, "recover", dir, state))
				switch now := describeFiles(t, dir); {
				case now != before && now != after:
					t.Fatalf("points %d and %d: neither as before nor as after:\n%s\nbefore:\n%s\nafter:\n%s",
						point, inner, now, before, after)
				case now == before && what == "commit" && strings.Contains(said, "committed"):
					t.Fatalf("points %d and %d: it was committed, and is as before", point, inner)
				}
			}
			if again == 0 {
				t.Error("no recovery was killed")
			}
			t.Logf("%d of %d points, %d recoveries killed as well, at most %d points in one", reached, all, again, inRecovery)
		})
	}
}

// A process that is ended by TerminateProcess in the midst of a transaction, and again in the midst of the recovery, leaves all
// as it was or, where it had said so, all done. The places are spread over the time that it takes; QUANTIX_ROUNDS says how
// many there are.
func TestSweepByTerminateProcess(t *testing.T) {
	rounds := roundsOf(t, 2)
	for _, what := range []string{"commit", "roll back"} {
		t.Run(what, func(t *testing.T) {
			dir, state := newDirs(t)
			before, begin := describeFiles(t, dir), time.Now()
			run(t, what, dir, state)
			took, after := time.Since(begin), describeFiles(t, dir)
			if (after == before) != (what == "roll back") {
				t.Fatalf("%s gives\n%s\nof\n%s", what, after, before)
			}
			hit := 0
			for round := range rounds {
				dir, state := newDirs(t)
				cmd, said := start(t, what, dir, state)
				time.Sleep(took * time.Duration(round+1) / time.Duration(rounds+1))
				if cmd.Process.Kill() == nil {
					hit++
				}
				cmd.Wait()
				recovery, _ := start(t, "recover", dir, state)
				time.Sleep(rand.N(took))
				recovery.Process.Kill()
				recovery.Wait()
				run(t, "recover", dir, state)
				switch now := describeFiles(t, dir); {
				case now != before && now != after:
					t.Fatalf("round %d: neither as before nor as after:\n%s\nbefore:\n%s\nafter:\n%s", round, now, before, after)
				case now == before && what == "commit" && strings.Contains(said.String(), "committed"):
					t.Fatalf("round %d: it was committed, and is as before", round)
				}
			}
			if hit == 0 {
				t.Error("no process was killed in the midst")
			}
			t.Logf("%d of %d killed within %v", hit, rounds, took)
		})
	}
}
