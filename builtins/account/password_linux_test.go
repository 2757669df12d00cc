package account

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// crypt is the hash that the C library of this machine makes of a password with the setting of another hash.
func crypt(t *testing.T, password, setting string) string {
	t.Helper()
	const script = `use strict; my ($p, $s) = @ARGV; print crypt($p, $s);`
	if _, err := exec.LookPath("perl"); err != nil {
		t.Skip("run it where there is perl, which asks the C library: ", err)
	}
	out, err := exec.Command("perl", "-e", script, "--", password, setting).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func (g *tree) shadow(name string) []string { return strings.Split(g.line(shadowFile, name), ":") }

func today() string { return strconv.FormatInt(time.Now().Unix()/secondsOfDay, 10) }

func TestPassword(t *testing.T) {
	g := newTree(t, debian)
	for _, password := range []string{"secret", "with:colon", "ümläut und blank ", "'\"$`\\", strings.Repeat("x", maxPassword)} {
		g.sets("account.password", &pb.AccountPasswordArgs{Name: "bob", Password: []byte(password)})
		line := g.shadow("bob")
		if len(line) != 9 || !strings.HasPrefix(line[1], "$6$") || crypt(t, password, line[1]) != line[1] || line[2] != today() || strings.Join(line[3:], ":") != "0:99999:7:::" {
			t.Errorf("%q: %v", password, line)
		}
		for _, c := range g.changes {
			if c.Target != shadowFile || c.Diff != "" || !c.ContentHidden {
				t.Errorf("the change shows it: %v", c)
			}
		}
	}
	g.owned(shadowFile, 0o640, 0, 42)
	g.sets("account.password", &pb.AccountPasswordArgs{Name: "bob", Password: []byte("secret"), Expire: new(true)})
	if g.shadow("bob")[2] != "0" {
		t.Error(g.shadow("bob"))
	}
	hash := g.shadow("bob")[1]
	g.sets("account.password", &pb.AccountPasswordArgs{Name: "bob", Password: []byte("secret"), Expire: new(false)})
	if g.shadow("bob")[2] != today() || g.shadow("bob")[1] != hash {
		t.Error("more was changed than that it expires", g.shadow("bob"))
	}
	g.sets("account.password", &pb.AccountPasswordArgs{Name: "bob", Password: []byte("!"), Crypted: true})
	g.sets("account.password", &pb.AccountPasswordArgs{Name: "bob", Password: []byte("$y$j9T$abcdefgh$7i/136rkrCoteXCYVMmke8IbBDFEZdMzaNTpkj.7sJ2"), Crypted: true})
	if got := g.shadow("bob")[1]; got != "$y$j9T$abcdefgh$7i/136rkrCoteXCYVMmke8IbBDFEZdMzaNTpkj.7sJ2" {
		t.Error(got)
	}
	// Users whose line in shadow is missing, or who have a hash in passwd.
	g.put(passwdFile, g.read(passwdFile)+"late:x:2000:100::/:/bin/sh\nold:abJnggxhB/yWI:2001:100::/:/bin/sh\n")
	for _, name := range []string{"late", "old"} {
		g.sets("account.password", &pb.AccountPasswordArgs{Name: name, Password: []byte("secret")})
		if line := g.shadow(name); len(line) != 9 || !isHashOf(line[1], []byte("secret")) || !strings.HasPrefix(g.line(passwdFile, name), name+":x:") {
			t.Error(g.line(passwdFile, name), line)
		}
	}
}

// A password of the pitfalls: it must not become the line of another account, nor be shown by any error.
func TestPasswordRefusals(t *testing.T) {
	g := newTree(t, debian)
	for _, password := range []string{"", "x\nroot:evil", "x\x00marker", "x\rmarker", "x\x1b[mmarker", "x\u0085marker", "marker\xff", strings.Repeat("marker", 100)} {
		for op, err := range map[string]error{
			"account.password": func() error {
				_, err := g.do("account.password", &pb.AccountPasswordArgs{Name: "bob", Password: []byte(password)})
				return err
			}(),
			"reset_password": func() error {
				_, err := g.do("reset_password", &pb.ResetPasswordRequest{Username: "bob", NewPassword: password})
				return err
			}(),
		} {
			if err == nil || strings.Contains(err.Error(), "marker") || strings.Contains(err.Error(), "evil") {
				t.Errorf("%s %q: %v", op, password, err)
			}
		}
	}
	for _, hash := range []string{"plain", "a:b", "$6$a\nb", "x", "$6$", "$6$salt hash", "!!!", strings.Repeat("$6$a$", 100), "ä", "$6$abc$def", "$2b$12$short",
		"$y$j9T$salt$" + strings.Repeat("x", 42), "$6$" + strings.Repeat("x", 86), "$1$salt$", "!$5$salt$" + strings.Repeat("x", 44)} {
		g.refuses("reset_password", &pb.ResetPasswordRequest{Username: "bob", NewPassword: hash, Crypted: true}, "invalid", "hash")
	}
	if got := g.line(shadowFile, "bob") + g.line(shadowFile, "root"); got != "bob:$6$saltstring$x:19000:0:99999:7:::root:*:19000:0:99999:7:::" {
		t.Error(got)
	}
}

// The native request sets it each time, and tells what is stored.
func TestResetPassword(t *testing.T) {
	g := newTree(t, debian)
	hash := ""
	for _, expire := range []bool{false, true, true, false} {
		out, err := g.do("reset_password", &pb.ResetPasswordRequest{Username: "bob", NewPassword: "secret", Expire: expire})
		reply := out.(*pb.ResetPasswordResponse)
		line := g.shadow("bob")
		if err != nil || !reply.Success || reply.MustChange != expire || line[1] == hash || line[2] == "0" != expire || crypt(t, "secret", line[1]) != line[1] {
			t.Error(expire, out, err, line)
		}
		hash = line[1]
	}
	// Where there is no shadow no password expires, so that is not said to have been done, and nothing is.
	none := newTree(t, map[string]string{passwdFile: "root:*:0:0:root:/root:/bin/sh\n", groupFile: "root:x:0:\n"})
	none.refuses("reset_password", &pb.ResetPasswordRequest{Username: "root", NewPassword: "x", Expire: true}, "unsupported", "no password can expire")
	if _, err := none.do("reset_password", &pb.ResetPasswordRequest{Username: "root", NewPassword: "x"}); err != nil || !isHashOf(strings.Split(none.line(passwdFile, "root"), ":")[1], []byte("x")) {
		t.Error(err, none.read(passwdFile))
	}
	if len(none.changes) != 1 || none.changes[0].Diff != "" || !none.changes[0].ContentHidden {
		t.Errorf("a passwd with hashes is shown: %v", none.changes)
	}
}

// What PAM says counts, else login.defs.
func TestMethodOfHashes(t *testing.T) {
	for _, c := range []struct{ pam, login, want string }{
		{"", "", "$6$"},
		{"", "ENCRYPT_METHOD SHA256\n", "$5$"},
		{"", "ENCRYPT_METHOD SHA512\nSHA_CRYPT_MIN_ROUNDS 1500\n", "$6$rounds=1500$"},
		{"", "ENCRYPT_METHOD DES\nSHA_CRYPT_MIN_ROUNDS 1500\n", "$6$"},
		{"password requisite pam_pwquality.so\npassword [success=1 default=ignore] pam_unix.so obscure sha256 rounds=2000\n", "ENCRYPT_METHOD SHA512\n", "$5$rounds=2000$"},
		{"auth required pam_unix.so sha256\n", "", "$6$"},
		{"password sufficient pam_unix.so yescrypt rounds=9\n", "ENCRYPT_METHOD SHA256\n", "$y$jAT$"},
		{"password sufficient pam_unix.so yescrypt\n", "ENCRYPT_METHOD SHA512\nYESCRYPT_COST_FACTOR 1\n", "$y$j9T$"},
		{"", "ENCRYPT_METHOD YESCRYPT\nSHA_CRYPT_MIN_ROUNDS 1500\n", "$y$j9T$"},
		{"", "ENCRYPT_METHOD YESCRYPT\nYESCRYPT_COST_FACTOR 1\n", "$y$j75$"},
		{"", "ENCRYPT_METHOD SHA512\nYESCRYPT_COST_FACTOR 1\n", "$6$"},
		{"password sufficient pam_unix.so sha512 rounds=1\n", "", "$6$rounds=1000$"},
	} {
		g := newTree(t, debian)
		g.put(loginDefs, c.login)
		if c.pam != "" {
			g.put(pamFiles[1], c.pam)
		}
		g.sets("account.password", &pb.AccountPasswordArgs{Name: "bob", Password: []byte("secret")})
		hash := g.shadow("bob")[1]
		if !strings.HasPrefix(hash, c.want) || strings.Contains(hash, "rounds=") != strings.Contains(c.want, "rounds=") || crypt(t, "secret", hash) != hash {
			t.Errorf("%+v: %s", c, hash)
		}
	}
}

// The bytes of a password are gone when the call is over, and never in the environment or on a command line of a process.
func TestPasswordIsCleared(t *testing.T) {
	g := newTree(t, debian)
	password := []byte("marker of the password")
	if _, err := g.do("account.password", &pb.AccountPasswordArgs{Name: "bob", Password: password}); err != nil || !bytes.Equal(password, make([]byte, len(password))) {
		t.Errorf("%q, %v", password, err)
	}
}

// A dry run tells what a run does, and does none of it; later calls of it see what earlier ones pretended.
func TestDryRun(t *testing.T) {
	g := newTree(t, debian)
	before := g.picture()
	overlay, err := g.root.Overlay(filepath.Join(t.TempDir(), "plan"))
	if err != nil {
		t.Fatal(err)
	}
	defer overlay.Close()
	real := g.call
	steps := func() (list []string) {
		for _, step := range []struct {
			op string
			in proto.Message
		}{
			{"account.create", &pb.AccountCreateArgs{Name: "alice", Groups: []string{"sudo"}}},
			{"account.password", &pb.AccountPasswordArgs{Name: "alice", Password: []byte("secret")}},
			{"account.ssh_keys", &pb.AccountKeysArgs{Name: "alice", Keys: []string{ed25519a}}},
			{"account.ssh_keys", &pb.AccountKeysArgs{Name: "alice", Keys: []string{ed25519b}, Exclusive: true}},
			{"account.modify", &pb.AccountModifyArgs{Name: "alice", Comment: new("A"), Uid: new(uint32(1500))}},
			{"account.modify", &pb.AccountModifyArgs{Name: "alice", Home: "/srv/new/alice", MoveHome: true, Uid: new(uint32(1501))}},
			{"account.remove", &pb.AccountRemoveArgs{Name: "bob", Home: true}},
		} {
			_, err := g.do(step.op, step.in)
			if err != nil {
				t.Error(step.op, err)
			}
			for _, c := range g.changes {
				list = append(list, strings.Join([]string{c.Op, c.Target, c.Action, c.Diff, strconv.FormatBool(c.ContentHidden)}, " "))
			}
		}
		return list
	}
	g.call = &builtins.Call{DryRun: &builtins.DryRun{Files: overlay}, Changed: func(c *pb.Change) { g.changes = append(g.changes, c) }}
	foretold := steps()
	if after := g.picture(); after != before {
		t.Errorf("a dry run changed\n%s\nto\n%s", before, after)
	}
	g.call = real
	if done := steps(); strings.Join(done, "\n") != strings.Join(foretold, "\n") || len(done) < 15 {
		t.Errorf("done:\n%s\nforetold:\n%s", strings.Join(done, "\n"), strings.Join(foretold, "\n"))
	}
}

// On a full disk, and where /etc is read-only, the files are as they were, and the error says why.
func TestDiskFullAndReadOnly(t *testing.T) {
	g := newTree(t, debian)
	etc := g.path("/etc")
	mount := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("mount", append(args, etc)...).CombinedOutput(); err != nil {
			t.Skipf("run it where a tmpfs can be mounted: %v, %s", err, out)
		}
	}
	saved := t.TempDir()
	if out, err := exec.Command("cp", "-a", etc+"/.", saved).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	mount("-t", "tmpfs", "-o", "size=256k", "tmpfs")
	defer func() {
		if out, err := exec.Command("umount", etc).CombinedOutput(); err != nil {
			t.Errorf("%v, %s", err, out)
		}
	}()
	if out, err := exec.Command("cp", "-a", saved+"/.", etc).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	filler, err := os.Create(etc + "/filler")
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 512))
	}
	filler.Close()
	for op, in := range map[string]proto.Message{
		"account.create": &pb.AccountCreateArgs{Name: "alice"},
		"reset_password": &pb.ResetPasswordRequest{Username: "bob", NewPassword: "secret"},
	} {
		files := g.read(passwdFile) + g.read(shadowFile) + g.read(groupFile) + g.read(gshadowFile)
		_, err := g.do(op, in)
		if now := g.read(passwdFile) + g.read(shadowFile) + g.read(groupFile) + g.read(gshadowFile); now != files {
			t.Errorf("%s changed the files on a full disk", op)
		}
		if err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("%s: %v", op, err)
		}
		if left, _ := os.ReadDir(etc); hasTemp(left) {
			t.Errorf("%s left something: %v", op, left)
		}
	}
	if err := errors.Join(os.Remove(etc+"/filler"), exec.Command("mount", "-o", "remount,ro", etc).Run()); err != nil {
		t.Fatal(err)
	}
	g.refuses("account.create", &pb.AccountCreateArgs{Name: "alice"}, "read_only", "read-only file system")
	g.refuses("reset_password", &pb.ResetPasswordRequest{Username: "bob", NewPassword: "secret"}, "read_only", "read-only file system")
}

func hasTemp(entries []os.DirEntry) bool {
	for _, e := range entries {
		if strings.Contains(e.Name(), ".tmp") || strings.HasSuffix(e.Name(), lockSuffix) && e.Name() != ".pwd.lock" {
			return true
		}
	}
	return false
}
