package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
)

// sshServer is OpenSSH's on this machine, with keys of its own.
type sshServer struct{ key, port string }

// startSSH starts sshd, and skips the benchmark where that, scp or rsync is not there.
func startSSH(b *testing.B) sshServer {
	for _, program := range []string{"/usr/sbin/sshd", "scp", "rsync", "ssh-keygen", "ssh", "tar"} {
		if _, err := exec.LookPath(program); err != nil {
			b.Skip(err)
		}
	}
	if os.Geteuid() != 0 {
		b.Skip("sshd needs root")
	}
	fail(b, os.MkdirAll("/run/sshd", 0o755))
	dir := b.TempDir()
	s := sshServer{key: filepath.Join(dir, "key")}
	for _, key := range []string{s.key, filepath.Join(dir, "host")} {
		quietly(b, exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key))
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	fail(b, err)
	s.port = strconv.Itoa(free.Addr().(*net.TCPAddr).Port)
	fail(b, free.Close())
	config := filepath.Join(dir, "sshd_config")
	fail(b, os.WriteFile(config, fmt.Appendf(nil, `ListenAddress 127.0.0.1:%s
HostKey %s/host
AuthorizedKeysFile %s.pub
PidFile none
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
`, s.port, dir, s.key), 0o600))
	server := exec.Command("/usr/sbin/sshd", "-D", "-q", "-f", config)
	fail(b, server.Start())
	b.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", "127.0.0.1:"+s.port)
		if err == nil {
			conn.Close()
			return s
		}
		if time.Now().After(deadline) {
			b.Fatal(err)
		}
	}
}

// ssh is the command for a connection, as an argument of others.
func (s sshServer) ssh(port string) []string {
	return []string{
		"-q", "-i", s.key, port, s.port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes",
	}
}

func quietly(b *testing.B, command *exec.Cmd) {
	if out, err := command.CombinedOutput(); err != nil {
		b.Helper()
		b.Fatalf("%v: %v\n%s", command.Args, err, out)
	}
}

// manyFiles makes 400 files of 1 to 8 KiB in 20 directories.
func manyFiles(b *testing.B) string {
	dir, random := filepath.Join(b.TempDir(), "files"), rand.New(rand.NewPCG(1, 2))
	for i := range 400 {
		path := filepath.Join(dir, fmt.Sprint("d", i%20), fmt.Sprint("f", i))
		fail(b, os.MkdirAll(filepath.Dir(path), 0o755))
		fail(b, os.WriteFile(path, bytes.Repeat([]byte{byte(i)}, 1024+random.IntN(7<<10)), 0o644))
	}
	return dir
}

// BenchmarkSmallFiles: 400 files of 1 to 8 KiB, by ctl and by programs over ssh on the same machine, each as a program of
// its own: to a new directory, beside scp and tar, and once more unchanged, beside rsync. With ctl contents and names are on
// the disk when it ends; the others leave that to the kernel, but for the rsync that is told to --fsync.
func BenchmarkSmallFiles(b *testing.B) {
	s, from, to := startSSH(b), manyFiles(b), b.TempDir()
	ctl := filepath.Join(b.TempDir(), "ctl")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", ctl, "../quantix-kvm-ctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	quietly(b, build)
	a := agenttest.Start(b, agenttest.Options{Config: "telemetry_interval_secs: 3600\n", Args: []string{"--log-level", "error"}})
	n := 0
	fresh := func() string { n++; return filepath.Join(to, strconv.Itoa(n)) }
	push := func(to string) {
		quietly(b, exec.Command(ctl, "--socket", a.Socket, "push", "-a", from+"/", to))
	}
	rsync := func(to string, more ...string) {
		shell := "ssh"
		for _, word := range s.ssh("-p") {
			shell += " " + word
		}
		args := append([]string{"-a", "-e", shell}, more...)
		quietly(b, exec.Command("rsync", append(args, from+"/", "root@127.0.0.1:"+to)...))
	}
	ours, theirs := fresh(), fresh()
	push(ours)
	rsync(theirs)
	b.Run("new-scp", func(b *testing.B) {
		alternate(b, func() { push(fresh()) }, func() {
			quietly(b, exec.Command("scp", append(s.ssh("-P"), "-r", from, "root@127.0.0.1:"+fresh())...))
		})
	})
	b.Run("new-tar", func(b *testing.B) {
		alternate(b, func() { push(fresh()) }, func() {
			to := fresh()
			remote := fmt.Sprintf("mkdir %s && tar xf - -C %s", to, to)
			line := `tar cf - -C "$0" . | ssh "$@"`
			quietly(b, exec.Command("sh", append(append([]string{"-c", line, from}, s.ssh("-p")...), "root@127.0.0.1", remote)...))
		})
	})
	b.Run("new-rsync-fsync", func(b *testing.B) {
		alternate(b, func() { push(fresh()) }, func() { rsync(fresh(), "--fsync") })
	})
	b.Run("unchanged-rsync", func(b *testing.B) {
		alternate(b, func() { push(ours) }, func() { rsync(theirs) })
	})
}
