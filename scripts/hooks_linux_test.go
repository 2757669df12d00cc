package scripts_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/scripts"
)

// These tests run the hooks beside real servers of their own, as root: apt-get install postgresql mariadb-server redis-server.

// tell runs a hook as the agent does.
func tell(t *testing.T, hook, phase string, env ...string) (string, error) {
	t.Helper()
	text, err := fs.ReadFile(scripts.Hooks(), hook)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-s", "--", phase)
	cmd.Stdin = bytes.NewReader(text)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// server starts a program and ends it after the test.
func server(t *testing.T, ready func() bool, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(time.Minute); !ready(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %s", argv[0], said.String())
		}
	}
}

// program finds one, or skips.
func program(t *testing.T, names ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
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

func output(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", argv, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Where no server runs nothing happens.
func TestHooksAreInert(t *testing.T) {
	entries, err := fs.ReadDir(scripts.Hooks(), ".")
	if err != nil || len(entries) == 0 {
		t.Fatal(entries, err)
	}
	for _, e := range entries {
		for _, phase := range []string{"freeze", "thaw", "freezeFail"} {
			cmd := exec.Command("pgrep", "-x", "postgres|mariadbd|mysqld|redis-server|valkey-server")
			if cmd.Run() == nil {
				t.Skip("a server runs on this machine")
			}
			if out, err := tell(t, e.Name(), phase); err != nil || out != "" {
				t.Errorf("%s %s: %v: %s", e.Name(), phase, err, out)
			}
		}
	}
}

// PostgreSQL has written a checkpoint when the hook has ended.
func TestPostgreSQLHook(t *testing.T) {
	bin := filepath.Dir(program(t, "/usr/lib/postgresql/*/bin/postgres", "postgres"))
	program(t, "psql")
	dir, err := os.MkdirTemp("/tmp", "quiesce-postgresql-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	output(t, "chown", "postgres", dir)
	port := fmt.Sprint(20000 + os.Getpid()%10000)
	as := []string{"runuser", "-u", "postgres", "--"}
	output(t, append(as, bin+"/initdb", "-D", dir+"/data", "--auth=peer")...)
	ask := append(as, "psql", "-qAtX", "-h", "/tmp", "-p", port, "-d", "postgres", "-c")
	server(t, func() bool { return exec.Command(ask[0], append(ask[1:], "SELECT 1")...).Run() == nil },
		append(as, bin+"/postgres", "-D", dir+"/data", "-k", "/tmp", "-p", port, "-c", "listen_addresses=")...)
	output(t, append(ask, "CREATE TABLE t AS SELECT generate_series(1, 10000)")...)
	checkpoint := func() string { return output(t, append(ask, "SELECT checkpoint_lsn FROM pg_control_checkpoint()")...) }
	before := checkpoint()
	if out, err := tell(t, "postgresql", "freeze"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if after := checkpoint(); after == before {
		t.Error("there was no checkpoint since ", before)
	}
	if out, err := tell(t, "postgresql", "thaw"); err != nil || out != "" {
		t.Errorf("%v: %s", err, out)
	}
}

// MariaDB takes no change between freeze and thaw, and takes it afterwards.
func TestMariaDBHook(t *testing.T) {
	mariadbd := program(t, "mariadbd", "/usr/sbin/mariadbd")
	program(t, "mariadb")
	dir, err := os.MkdirTemp("/tmp", "quiesce-mariadb-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	output(t, "chown", "mysql", dir)
	output(t, "mariadb-install-db", "--no-defaults", "--user=mysql", "--datadir="+dir+"/data", "--auth-root-authentication-method=socket")
	socket := dir + "/socket"
	ask := func(query string) []string {
		return []string{"timeout", "2", "mariadb", "--socket=" + socket, "--batch", "--skip-column-names", "-e", query}
	}
	server(t, func() bool { q := ask("SELECT 1"); return exec.Command(q[0], q[1:]...).Run() == nil },
		mariadbd, "--no-defaults", "--user=mysql", "--datadir="+dir+"/data", "--socket="+socket, "--skip-networking", "--pid-file="+dir+"/pid")
	env := "HOME=" + dir // its .my.cnf goes before what the machine has
	if err := os.WriteFile(dir+"/.my.cnf", []byte("[client]\nsocket="+socket+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	output(t, ask("CREATE TABLE test.t (n INT) ENGINE=MyISAM; INSERT INTO test.t VALUES (1)")...)
	for _, end := range []string{"thaw", "freezeFail"} {
		if out, err := tell(t, "mariadb", "freeze", env); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		q := ask("INSERT INTO test.t VALUES (2)")
		if out, err := exec.Command(q[0], q[1:]...).CombinedOutput(); err == nil {
			t.Errorf("a table was changed: %s", out)
		}
		if out, err := tell(t, "mariadb", end, env); err != nil || out != "" {
			t.Fatalf("%v: %s", err, out)
		}
		output(t, ask("INSERT INTO test.t VALUES (3)")...)
	}
	if _, err := os.Stat("/run/quantix-kvm/mariadb-hook"); err == nil {
		t.Error("something of the hook is left")
	}
}

// Redis has saved when the hook has ended.
func TestRedisHook(t *testing.T) {
	redis := program(t, "redis-server")
	if conn, err := net.Dial("tcp", "127.0.0.1:6379"); err == nil {
		conn.Close()
		t.Skip("a server has the usual port")
	}
	dir := t.TempDir()
	server(t, func() bool { out, _ := exec.Command("redis-cli", "PING").Output(); return string(out) == "PONG\n" },
		redis, "--dir", dir, "--save", "3600 1", "--bind", "127.0.0.1")
	output(t, "redis-cli", "SET", "key", "value")
	if _, err := os.Stat(filepath.Join(dir, "dump.rdb")); err == nil {
		t.Fatal("it has saved already")
	}
	if out, err := tell(t, "redis", "freeze"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "dump.rdb")); err != nil || !bytes.Contains(text, []byte("value")) {
		t.Error("it has not saved: ", err)
	}
}
