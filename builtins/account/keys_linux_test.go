package account

import (
	"encoding/base64"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// wireKey is a public key of these fields.
func wireKey(fields ...string) string {
	var blob []byte
	for _, f := range fields {
		blob = append(blob, 0, 0, byte(len(f)>>8), byte(len(f)))
		blob = append(blob, f...)
	}
	return fields[0] + " " + base64.StdEncoding.EncodeToString(blob)
}

var (
	ed25519a = wireKey("ssh-ed25519", strings.Repeat("a", 32)) + " a@host"
	ed25519b = wireKey("ssh-ed25519", strings.Repeat("b", 32)) + " b@host"
	rsa2048  = wireKey("ssh-rsa", "\x01\x00\x01", "\x00"+strings.Repeat("\xf1", 256))
	ecdsa256 = wireKey("ecdsa-sha2-nistp256", "nistp256", "\x04"+strings.Repeat("c", 64))
	skKey    = wireKey("sk-ssh-ed25519@openssh.com", strings.Repeat("d", 32), "ssh:")
)

const bobKeys = "/home/bob/.ssh/authorized_keys"

func TestKeys(t *testing.T) {
	g := newTree(t, debian)
	g.sets("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob", Keys: []string{ed25519a, rsa2048, ed25519a}})
	if got := g.read(bobKeys); got != ed25519a+"\n"+rsa2048+"\n" {
		t.Error(got)
	}
	g.owned("/home/bob/.ssh", 0o700, 1000, 1000)
	g.owned(bobKeys, 0o600, 1000, 1000)
	g.sets("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob", Keys: []string{"restrict,command=\"echo \\\"a b\\\"\" " + ed25519b, ecdsa256, skKey}})
	value, err := g.do("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob"})
	if list := value.(*pb.LuaValue).GetTable().GetArray(); err != nil || len(list) != 5 || string(list[2].GetString_()) != "restrict,command=\"echo \\\"a b\\\"\" "+ed25519b {
		t.Error(value, err)
	}
	// Comments and what is not known stay, and a key that is there keeps its line with its options.
	own := "# mine\nfrom=\"10.0.0.1\" " + ed25519a + "\n\nssh-future AAAA x\n" + ed25519b // without an end
	g.put(bobKeys, own)
	if err := errors.Join(os.Chown(g.path(bobKeys), 1000, 1000), os.Chmod(g.path(bobKeys), 0o644)); err != nil {
		t.Fatal(err)
	}
	g.sets("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob", Keys: []string{ed25519a}}) // the mode
	g.owned(bobKeys, 0o600, 1000, 1000)
	g.sets("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob", Keys: []string{ed25519a, rsa2048}})
	if got := g.read(bobKeys); got != own+"\n"+rsa2048+"\n" {
		t.Error(got)
	}
	g.sets("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob", Keys: []string{"restrict " + ed25519a, rsa2048}, Exclusive: true})
	if got := g.read(bobKeys); got != "# mine\nrestrict "+ed25519a+"\n\n"+rsa2048+"\n" {
		t.Error(got)
	}
	g.sets("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob", Exclusive: true})
	if got := g.read(bobKeys); got != "# mine\n\n" {
		t.Error(got)
	}
	if keygen, err := exec.LookPath("ssh-keygen"); err == nil {
		for _, args := range [][]string{{"-t", "ed25519"}, {"-t", "rsa", "-b", "1024"}, {"-t", "rsa", "-b", "4096"}, {"-t", "ecdsa", "-b", "256"}, {"-t", "ecdsa", "-b", "384"}, {"-t", "ecdsa", "-b", "521"}} {
			file := filepath.Join(t.TempDir(), "key")
			if out, err := exec.Command(keygen, append(args, "-q", "-N", "", "-f", file)...).CombinedOutput(); err != nil {
				t.Fatal(err, string(out))
			}
			public, err := os.ReadFile(file + ".pub")
			if err != nil {
				t.Fatal(err)
			}
			g.sets("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob", Keys: []string{string(public)}})
		}
	}
}

// A key may stand there several times, with other options: that of which the line is given is there.
func TestKeyOfSeveralLines(t *testing.T) {
	one, two := "from=\"192.0.2.1\" "+ed25519a, "from=\"192.0.2.2\" "+ed25519a
	for _, c := range []struct {
		key, want string
		exclusive bool
	}{
		{two, one + "\n" + two + "\n", false}, {two, two + "\n", true}, {one, one + "\n" + two + "\n", false}, {one, one + "\n", true},
		{ed25519a, one + "\n" + two + "\n", false},
	} {
		g := newTree(t, debian)
		g.put(bobKeys, one+"\n"+two+"\n")
		if err := errors.Join(os.Chown(g.path("/home/bob/.ssh"), 1000, 1000), os.Chown(g.path(bobKeys), 1000, 1000), os.Chmod(g.path(bobKeys), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := g.do("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob", Keys: []string{c.key}, Exclusive: c.exclusive}); err != nil {
			t.Fatal(err)
		}
		if got := g.read(bobKeys); got != c.want {
			t.Errorf("%s %v: %s", c.key, c.exclusive, got)
		}
	}
}

// A line that sshd skips lets nobody in, so the key is not there.
func TestLinesThatAreSkipped(t *testing.T) {
	for _, options := range []string{"-", "no-such-option", "command=/bin/x", "no-pty, no-port-forwarding", "no-pty,", "from=10.0.0.1", "\ufeff"} {
		line := options + " " + ed25519a + "\n"
		for _, exclusive := range []bool{false, true} {
			want := line + ed25519a + "\n"
			if exclusive {
				want = ed25519a + "\n"
			}
			k, err := takenKey(ed25519a)
			if got := string(merge([]byte(line), []*key{k}, exclusive)); err != nil || got != want {
				t.Errorf("%s %v: %s %v", options, exclusive, got, err)
			}
		}
	}
}

// A key that is there with options keeps them, and the reply says so: an image may let root's key do nothing.
func TestKeyWithOptionsIsTold(t *testing.T) {
	for line, want := range map[string]string{
		"no-pty,command=\"echo no\" " + ed25519a + "\n": "no-pty,command=", ed25519a + "\nno-pty " + ed25519a + "\n": "", "": "",
		"no-pty " + ed25519b + "\n": "",
	} {
		g := newTree(t, debian)
		g.put(bobKeys, line)
		if err := errors.Join(os.Chown(g.path("/home/bob/.ssh"), 1000, 1000), os.Chown(g.path(bobKeys), 1000, 1000)); err != nil {
			t.Fatal(err)
		}
		var told []string
		g.call.Warned = func(text string) { told = append(told, text) }
		if _, err := g.do("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob", Keys: []string{ed25519a}}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(told, "\n"); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q: %q", line, got)
		}
	}
}

func TestOptionsOfKeys(t *testing.T) {
	for _, options := range []string{
		"no-pty", "NO-PTY,No-X11-Forwarding", "restrict,pty,command=\"/bin/x \\\"a,b\\\" # c\"", "cert-authority,principals=\"a,b\"", "from=\"10.0.0.0/8,!10.0.0.1\"",
		"environment=\"A=B C\",environment=\"D=\",permitopen=\"[::1]:80\",permitlisten=\"8080\",tunnel=\"1\",expiry-time=\"20300101\"", "no-touch-required,verify-required", "no-verify-required",
	} {
		k, err := takenKey(options + " " + ed25519a)
		if err != nil || k.options != options {
			t.Errorf("%s: %v %v", options, k, err)
		}
	}
}

// Where sshd reads other files, a key in the home directory lets nobody in.
func TestKeysElsewhere(t *testing.T) {
	for _, c := range []struct{ main, part, where string }{
		{"AuthorizedKeysFile /etc/ssh/keys/%u\n", "", sshdConfig},
		{"authorizedkeysfile=\"/etc/ssh/keys/%u\" # all\n", "", sshdConfig},
		{"Include /etc/ssh/sshd_config.d/*.conf\nAuthorizedKeysFile .ssh/authorized_keys\n", "AuthorizedKeysFile none\n", "/etc/ssh/sshd_config.d/50.conf"},
		{"Include sshd_config.d/*.conf\n", "\n AuthorizedKeysFile\t.ssh/keys\n", "/etc/ssh/sshd_config.d/50.conf"},
		{"Include other/*.conf\n", "AuthorizedKeysFile none\n", ""},
		{"AuthorizedKeysFile .ssh/authorized_keys .ssh/authorized_keys2\nInclude sshd_config.d/*\n", "AuthorizedKeysFile none\n", ""},
		{"AuthorizedKeysFile /etc/ssh/keys/%u %h/.ssh/authorized_keys\n", "", ""},
		{"AuthorizedKeysFile /home/%u/.ssh/authorized_keys\n", "", ""},
		{"#AuthorizedKeysFile none\nMatch User git\nAuthorizedKeysFile none\n", "", ""},
		{"", "", ""},
	} {
		g := newTree(t, debian)
		g.put(sshdConfig, c.main)
		g.put("/etc/ssh/sshd_config.d/50.conf", c.part)
		g.put("/etc/ssh/sshd_config.d/.hidden.conf", "AuthorizedKeysFile /hidden\n")
		in := &pb.AccountKeysArgs{Name: "bob", Keys: []string{ed25519a}}
		if c.where == "" {
			g.sets("account.ssh_keys", in)
			continue
		}
		g.refuses("account.ssh_keys", in, "refused", c.where+": sshd reads keys from ")
		g.refuses("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob"}, "refused", c.where)
	}
}

// Without a file of the administrator's that of the distribution counts, as on openSUSE.
func TestKeysElsewhereByTheDistribution(t *testing.T) {
	g := newTree(t, debian)
	g.put(vendorDir+sshdConfig, "Include /etc/ssh/sshd_config.d/*.conf\nAuthorizedKeysFile /etc/ssh/keys/%u\n")
	in := &pb.AccountKeysArgs{Name: "bob", Keys: []string{ed25519a}}
	g.refuses("account.ssh_keys", in, "refused", "/usr/etc/ssh/sshd_config: sshd reads keys from /etc/ssh/keys/%u")
	g.put(sshdConfig, "\n")
	g.sets("account.ssh_keys", in)
}

// Files of sshd that include each other do not hold up a call.
func TestFilesOfSSHDThatIncludeEachOther(t *testing.T) {
	g := newTree(t, debian)
	for _, file := range []string{sshdConfig, sshdConfig + ".d/1.conf", sshdConfig + ".d/2.conf", sshdConfig + ".d/3.conf"} {
		g.put(file, "Include sshd_config.d/*.conf\n")
	}
	begin := time.Now()
	g.sets("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob", Keys: []string{ed25519a}})
	if took := time.Since(begin); took > 20*time.Second {
		t.Error(took)
	}
}

// An error about a key names what is wrong with it.
func TestErrorsOfKeys(t *testing.T) {
	for line, want := range map[string]string{
		wireKey("ssh-dss", "a", "b", "c", "d"):                           `"ssh-dss" is no type of a key`,
		"rsa-sha2-512 " + strings.Fields(rsa2048)[1]:                     `"rsa-sha2-512" is no type of a key`,
		ed25519a + "\n" + ed25519b:                                       "a key is one line",
		"no-pty ssh-future " + strings.Fields(rsa2048)[1]:                `"ssh-future" is no type of a key`,
		wireKey("ssh-ed25519-cert-v01@openssh.com", "a", "b") + " of it": `"ssh-ed25519-cert-v01@openssh.com" is no type`,
	} {
		if _, err := takenKey(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", line, err, want)
		}
	}
}

func TestKeysThatAreNone(t *testing.T) {
	g := newTree(t, debian)
	short := wireKey("ssh-ed25519", "short")
	for _, line := range []string{
		"", "# comment", "ssh-ed25519", "ssh-ed25519 !!!", short, "ssh-rsa " + strings.Fields(ed25519a)[1], "ssh-ed25519 " + strings.Fields(rsa2048)[1],
		ed25519a + "\n" + ed25519b, "options only", "-----BEGIN OPENSSH PRIVATE KEY-----", wireKey("ssh-rsa", "\x01\x00\x01", strings.Repeat("x", 64)),
		wireKey("ssh-dss", "a", "b", "c", "d"), wireKey("ecdsa-sha2-nistp256", "nistp384", "\x04"+strings.Repeat("c", 64)), "x\x00 " + ed25519a, "\xff " + ed25519a,
		strings.Replace(ed25519a, " a@host", "=", 1), wireKey("ssh-ed25519", strings.Repeat("a", 32), "more"), "command=\"x " + ed25519a,
		ed25519a + strings.Repeat("x", maxKey), "bogus-option " + ed25519a, "no-pty, " + ed25519a, "no-pty=\"x\" " + ed25519a, "command " + ed25519a,
		"command=/bin/x " + ed25519a, "no-command=\"x\" " + ed25519a, "from=\"a\"no-pty " + ed25519a, ",no-pty " + ed25519a,
	} {
		before := g.picture()
		_, err := g.do("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob", Keys: []string{ed25519b, line}})
		if code := fault.Code(err); code != "invalid" && code != "too_large" || g.picture() != before {
			t.Errorf("%.80q: %v", line, err)
		}
	}
}

// In a home directory the user makes what he likes. None of it leads the agent to another's file, also not in a tree, where
// links are followed.
func TestKeysAndTraps(t *testing.T) {
	in := &pb.AccountKeysArgs{Name: "bob", Keys: []string{ed25519a}}
	for name, trap := range map[string]func(g *tree) error{
		"the directory is a link": func(g *tree) error { return link(g, "/root/.ssh", "/home/bob/.ssh") },
		"a link within the tree":  func(g *tree) error { return link(g, "../../root/.ssh", "/home/bob/.ssh") },
		"the file is a link":      func(g *tree) error { return errors.Join(g.own("/home/bob/.ssh"), link(g, "/etc/shadow", bobKeys)) },
		"the file is a hard link": func(g *tree) error {
			return errors.Join(g.own("/home/bob/.ssh"), os.Link(g.path(shadowFile), g.path(bobKeys)))
		},
		"root's own directory": func(g *tree) error { return os.Mkdir(g.path("/home/bob/.ssh"), 0o755) },
		"root's own file": func(g *tree) error {
			return errors.Join(g.own("/home/bob/.ssh"), os.WriteFile(g.path(bobKeys), []byte("secret"), 0o600))
		},
		"a directory for the file": func(g *tree) error { return errors.Join(g.own("/home/bob/.ssh"), os.Mkdir(g.path(bobKeys), 0o755)) },
		"a file for the directory": func(g *tree) error { return os.WriteFile(g.path("/home/bob/.ssh"), nil, 0o644) },
		"another's home directory": func(g *tree) error { return os.Chown(g.path("/home/bob"), 33, 33) },
		"a large file": func(g *tree) error {
			return errors.Join(g.own("/home/bob/.ssh"), os.WriteFile(g.path(bobKeys), make([]byte, maxKeys+1), 0o600), os.Chown(g.path(bobKeys), 1000, 1000))
		},
	} {
		g := newTree(t, debian)
		if err := errors.Join(os.MkdirAll(g.path("/root/.ssh"), 0o700), trap(g)); err != nil {
			t.Fatal(name, err)
		}
		before := g.picture()
		_, err := g.do("account.ssh_keys", in)
		if code := fault.Code(err); code != "refused" && code != "is_directory" && code != "too_large" || g.picture() != before {
			t.Errorf("%s: %v\n%s", name, err, g.picture())
		}
		_, err = g.do("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob"})
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	g := newTree(t, debian)
	g.refuses("account.ssh_keys", &pb.AccountKeysArgs{Name: "www-data", Keys: in.Keys}, "not_found", "no home directory")
	g.put("/var/www/x", "")
	g.refuses("account.ssh_keys", &pb.AccountKeysArgs{Name: "www-data", Keys: in.Keys}, "refused", "belongs to user 0")
}

func link(g *tree, target, path string) error {
	return errors.Join(os.Symlink(target, g.path(path)), os.Lchown(g.path(path), 1000, 1000))
}

// own makes a directory of bob's.
func (g *tree) own(path string) error {
	return errors.Join(os.Mkdir(g.path(path), 0o700), os.Chown(g.path(path), 1000, 1000))
}
