package quiesce

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// database is one that a test writes to as fast as it takes it: rows with the numbers from 1 on, each acknowledged by itself.
type database interface {
	// start makes it in a directory and starts it there; writer is a client that takes statements and answers each by its
	// number.
	start(t *testing.T, dir string) (writer *exec.Cmd, statement func(n int64) string)
	// check opens the database that is in the directory of a snapshot, checks it against its own check, and returns how many
	// rows it has.
	check(t *testing.T, dir string) (int64, error)
}

func has(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if found, _ := filepath.Glob(name); len(found) > 0 {
			return found[0]
		}
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skipf("needs %s", names[0])
	return ""
}

type sqlite struct{}

func (sqlite) start(t *testing.T, dir string) (*exec.Cmd, func(int64) string) {
	program := has(t, "sqlite3")
	run(t, program, filepath.Join(dir, "db"), "PRAGMA journal_mode=WAL; CREATE TABLE t (n INTEGER PRIMARY KEY, pad TEXT)")
	writer := exec.Command(program, "-batch", filepath.Join(dir, "db"), "-cmd", "PRAGMA synchronous=FULL")
	return writer, func(n int64) string {
		return fmt.Sprintf("INSERT INTO t VALUES (%d, hex(randomblob(200)));\nSELECT %d;\n", n, n)
	}
}

func (sqlite) check(t *testing.T, dir string) (int64, error) {
	out, err := exec.Command("sqlite3", "-batch", filepath.Join(dir, "db"), "PRAGMA integrity_check; SELECT count(*) FROM t").CombinedOutput()
	verdict, count, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || verdict != "ok" {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	return strconv.ParseInt(count, 10, 64)
}

type postgres struct{ port *int }

func (p postgres) as(argv ...string) *exec.Cmd {
	cmd := exec.Command("runuser", append([]string{"-u", "postgres", "--"}, argv...)...)
	cmd.Dir = "/"
	return cmd
}

// serve starts a server on a directory, and returns how it is asked and stopped.
func (p postgres) serve(t *testing.T, dir string) (ask []string, stop func(), err error) {
	t.Helper()
	*p.port++
	port := strconv.Itoa(*p.port)
	sockets, err := os.MkdirTemp("/tmp", "quiesce-pg-")
	if err != nil {
		return nil, nil, err
	}
	if err := os.Chmod(sockets, 0o777); err != nil {
		return nil, nil, err
	}
	bin := filepath.Dir(has(t, "/usr/lib/postgresql/*/bin/postgres", "postgres"))
	var said bytes.Buffer
	server := p.as(bin+"/postgres", "-D", dir+"/pg", "-k", sockets, "-p", port, "-c", "listen_addresses=", "-c", "max_wal_size=64MB")
	server.Stdout, server.Stderr = &said, &said
	if err := server.Start(); err != nil {
		return nil, nil, err
	}
	stop = func() {
		_ = exec.Command("pkill", "-INT", "-P", strconv.Itoa(server.Process.Pid)).Run() // runuser passes TERM on, which waits for clients
		_ = server.Wait()
		os.RemoveAll(sockets)
	}
	ask = []string{"psql", "-qAtX", "-h", sockets, "-p", port, "-d", "postgres"}
	for deadline := time.Now().Add(time.Minute); p.as(append(ask, "-c", "SELECT 1")...).Run() != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) || server.ProcessState != nil {
			stop()
			return nil, nil, fmt.Errorf("the server does not answer: %s", said.String())
		}
	}
	return ask, stop, nil
}

func (p postgres) start(t *testing.T, dir string) (*exec.Cmd, func(int64) string) {
	bin := filepath.Dir(has(t, "/usr/lib/postgresql/*/bin/postgres", "postgres"))
	run(t, "chown", "postgres", dir)
	if out, err := p.as(bin+"/initdb", "-D", dir+"/pg", "--auth=peer", "--data-checksums").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ask, stop, err := p.serve(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	if out, err := p.as(append(ask, "-c", "CREATE TABLE t (n BIGINT PRIMARY KEY, pad TEXT)")...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return p.as(ask...), func(n int64) string {
		return fmt.Sprintf("INSERT INTO t VALUES (%d, repeat(md5('%d'), 10));\nSELECT %d;\n", n, n, n)
	}
}

func (p postgres) check(t *testing.T, dir string) (int64, error) {
	_ = os.Remove(dir + "/pg/postmaster.pid")
	ask, stop, err := p.serve(t, dir)
	if err != nil {
		return 0, err
	}
	defer stop()
	amcheck := append([]string{has(t, "/usr/lib/postgresql/*/bin/pg_amcheck"), "--install-missing"}, ask[2:]...)
	if out, err := p.as(amcheck...).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("pg_amcheck: %w: %s", err, out)
	}
	out, err := p.as(append(ask, "-c", "SELECT count(*) FROM t WHERE pad = repeat(md5(n::text), 10)")...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	return strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
}

// A snapshot of a file system that is frozen under the load of a database needs no replay of ext4's journal, passes the
// database's own check, and has every row that was acknowledged before the freeze. The same without a freeze is counted beside
// it. QUANTIX_ROUNDS says how many snapshots; QUANTIX_DATABASES=1 has the test run.
func TestSnapshotsOfDatabases(t *testing.T) {
	if os.Getenv("QUANTIX_DATABASES") == "" {
		t.Skip("takes minutes: set QUANTIX_DATABASES=1, and QUANTIX_ROUNDS for more than 3 snapshots of each")
	}
	rounds := 3
	if n, err := strconv.Atoi(os.Getenv("QUANTIX_ROUNDS")); err == nil {
		rounds = n
	}
	port := 21000 + os.Getpid()%10000
	for _, kind := range []string{"ext4", "xfs"} {
		for name, db := range map[string]database{"sqlite": sqlite{}, "postgresql": postgres{&port}} {
			t.Run(kind+"/"+name, func(t *testing.T) { snapshotsOf(t, kind, db, rounds) })
		}
	}
}

func snapshotsOf(t *testing.T, kind string, db database, rounds int) {
	r := newRoom(t, Config{})
	dir, err := os.MkdirTemp("/tmp", "quiesce-db-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	point := filepath.Join(dir, "m")
	mountIn(t, dir, point, kind, 600, "-q")
	image := filepath.Join(dir, "image.m")
	writer, statement := db.start(t, point)
	acknowledged := write(t, writer, statement)
	for acknowledged.Load() < 100 {
		time.Sleep(10 * time.Millisecond)
	}
	bad, unfrozenBad, rows := 0, 0, int64(0)
	for round := range 2 * rounds {
		frozen := round%2 == 0
		var token string
		before := acknowledged.Load()
		if frozen {
			token = mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{point}}).QuiesceToken
		}
		snapshot := filepath.Join(dir, fmt.Sprint("snapshot", round)) // a new file each: what was mounted of the last may live on a moment
		out, err := exec.Command("cp", "--sparse=always", image, snapshot).CombinedOutput()
		if frozen {
			mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: token})
		}
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		n, err := checkSnapshot(t, kind, snapshot, db)
		os.Remove(snapshot)
		if err == nil && n < before {
			err = fmt.Errorf("%d rows, and %d were acknowledged before", n, before)
		}
		switch {
		case err == nil:
			rows = n
		case frozen:
			bad++
			t.Errorf("snapshot %d: %v", round/2, err)
		default:
			unfrozenBad++
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Logf("%d of %d snapshots are bad, and %d of %d that were not frozen; the last has %d rows", bad, rounds, unfrozenBad, rounds, rows)
}

// write has a client write rows, one after the other, until the end of the test. It returns how many were acknowledged.
func write(t *testing.T, client *exec.Cmd, statement func(int64) string) *atomic.Int64 {
	t.Helper()
	in, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := client.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	acknowledged, done := &atomic.Int64{}, make(chan struct{})
	go func() {
		defer close(done)
		answers := bufio.NewScanner(out)
		for n := int64(1); ; n++ {
			if _, err := io.WriteString(in, statement(n)); err != nil {
				return
			}
			for answers.Scan() && answers.Text() != strconv.FormatInt(n, 10) {
			}
			if answers.Text() != strconv.FormatInt(n, 10) {
				return
			}
			acknowledged.Store(n)
		}
	}()
	t.Cleanup(func() {
		_ = client.Process.Signal(syscall.SIGTERM)
		in.Close()
		<-done
		_ = client.Wait()
	})
	return acknowledged
}

// checkSnapshot looks at an image: first as it is, without any replay, then with its database.
func checkSnapshot(t *testing.T, kind, image string, db database) (int64, error) {
	t.Helper()
	if kind == "ext4" {
		out, err := exec.Command("dumpe2fs", "-h", image).Output()
		if err != nil {
			return 0, err
		}
		if strings.Contains(string(out), "needs_recovery") {
			return 0, fmt.Errorf("the journal has to be replayed")
		}
		if out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%w: %s", err, out)
		}
	}
	point := image + ".m"
	if err := os.MkdirAll(point, 0o755); err != nil {
		return 0, err
	}
	options := "loop"
	if kind == "xfs" { // first what is there without a replay, which xfs always has: see xfs_fs_freeze in fs/xfs/xfs_super.c
		if out, err := exec.Command("mount", "-o", "loop,ro,norecovery,nouuid", image, point).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%w: %s", err, out)
		}
		err := exec.Command("find", point, "-type", "f", "-exec", "cat", "{}", "+").Run()
		if err := unix.Unmount(point, 0); err != nil {
			return 0, err
		}
		if err != nil {
			return 0, err
		}
		options += ",nouuid"
	}
	if out, err := exec.Command("mount", "-o", options, image, point).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	defer func() {
		for range 50 {
			if unix.Unmount(point, 0) == nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Error("cannot unmount ", point)
	}()
	return db.check(t, point)
}
