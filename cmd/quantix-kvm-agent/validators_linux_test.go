package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// validators are the programs by which others check their configuration, as a script calls them. Each comes with the
// Debian package of its name in the comment.
var validators = map[string]string{
	"/usr/sbin/nginx":          `exec.run({"nginx", "-t"}, {readonly = true, private = true})`,                                     // nginx-light
	"/usr/sbin/sshd":           `exec.run({"/usr/sbin/sshd", "-t"}, {readonly = true, private = true})`,                            // openssh-server
	"/usr/sbin/visudo":         `exec.run({"visudo", "-c"}, {readonly = true, private = true})`,                                    // sudo
	"/usr/bin/named-checkconf": `exec.run({"named-checkconf", "/etc/check-named.conf"}, {readonly = true, private = true})`,        // bind9-utils
	"/usr/sbin/haproxy":        `exec.run({"haproxy", "-c", "-f", "/etc/haproxy/haproxy.cfg"}, {readonly = true, private = true})`, // haproxy
	"/usr/sbin/apachectl":      `exec.run({"apachectl", "configtest"}, {readonly = true, private = true})`,                         // apache2
	"/usr/lib/postgresql/15/bin/postgres": `exec.run({"/usr/lib/postgresql/15/bin/postgres", "-C", "shared_buffers", "-D", "/etc/postgresql/15/main"},
		{readonly = true, private = true, user = "postgres"})`, // postgresql
}

// Validators of others work as readonly commands: on a running system, and in an image where no service was ever started.
// What they write is seen by nobody else.
func TestValidators(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can hold commands to what they say")
	}
	image := overlayOfRoot(t)
	for name, root := range map[string]string{"running": "", "image": image} {
		a := agenttest.Start(t, agenttest.Options{Root: root})
		c := a.Client(t, client.Options{})
		if root == "" {
			root = "/"
		}
		for program, call := range validators {
			t.Run(name+program, func(t *testing.T) {
				if _, err := os.Stat(program); err != nil {
					t.Skipf("%s is not installed here", program)
				}
				if strings.Contains(call, "check-named") {
					if err := os.WriteFile(filepath.Join(root, "/etc/check-named.conf"), []byte("options { directory \"/tmp\"; };\n"), 0o644); err != nil {
						t.Fatal(err)
					}
					defer os.Remove(filepath.Join(root, "/etc/check-named.conf"))
				}
				before := picture(t, filepath.Join(root, "run"))
				reply := runIn(t, c, "", "local r = "+call+" return r.code")
				if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || reply.Result.GetNumberValue() != 0 {
					t.Error(reply.Status, reply.Error)
				}
				if root != "/" && picture(t, filepath.Join(root, "run")) != before {
					t.Error("what it wrote in /run is left")
				}
			})
		}
	}
}

// Programs of others look at a new file before it is put in place: one that they take is, and of one that they do not the error
// has their words. On a running system, and in an image where no service was ever started.
func TestFilesAreValidatedByTheirPrograms(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can hold commands to what they say")
	}
	image := overlayOfRoot(t)
	for name, root := range map[string]string{"running": "", "image": image} {
		c := agenttest.Start(t, agenttest.Options{Root: root}).Client(t, client.Options{})
		for _, test := range []struct{ program, argv, good, bad string }{
			{"/usr/sbin/nginx", `"nginx", "-t", "-c", "%s"`, "events {}\nhttp { server { listen 127.0.0.1:8099; } }\n", "events {\n"},
			{"/usr/sbin/sshd", `"/usr/sbin/sshd", "-t", "-f", "%s"`, "MaxAuthTries 3\n", "MaxAuthTrys 3\n"},
			{"/usr/sbin/visudo", `"visudo", "-cf", "%s"`, "root ALL=(ALL) ALL\n", "root ALL=(ALL ALL\n"},
			{"/usr/bin/named-checkconf", `"named-checkconf", "%s"`, "options { directory \"/tmp\"; };\n", "optionz {};\n"},
			{"/usr/sbin/haproxy", `"haproxy", "-c", "-f", "%s"`, "defaults\n  mode http\n  timeout client 1s\n  timeout server 1s\n" +
				"  timeout connect 1s\nfrontend a\n  bind 127.0.0.1:8098\n  default_backend b\nbackend b\n", "frontend\n nothing\n"},
			{"/usr/sbin/apachectl", `"apachectl", "-t", "-f", "%s"`, "ServerName x\nServerRoot /etc/apache2\nListen 127.0.0.1:8097\n" +
				"LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so\n" +
				"LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so\nErrorLog /var/log/apache2/e.log\n", "Listem 1\n"},
		} {
			t.Run(name+test.program, func(t *testing.T) {
				if _, err := os.Stat(test.program); err != nil {
					t.Skipf("%s is not installed here", test.program)
				}
				path := fmt.Sprintf("/etc/quantix-validated-%d", os.Getpid())
				defer os.Remove(filepath.Join("/", root, path))
				write := func(text string) *pb.RunScriptResponse {
					return runIn(t, c, "", fmt.Sprintf(`return file.write(%q, %q, {mode = "0440", validate = {%s}})`, path, text, test.argv))
				}
				if reply := write(test.bad); !strings.Contains(reply.Error.GetMessage(), "it is not put in place") {
					t.Error("a bad one:", reply.Status, reply.Error)
				}
				if _, err := os.Stat(filepath.Join("/", root, path)); err == nil {
					t.Error("a bad one is in place")
				}
				if reply := write(test.good); reply.Error != nil || !reply.Result.GetBoolValue() {
					t.Error("a good one:", reply.Status, reply.Error)
				}
			})
		}
	}
}

// overlayOfRoot returns this system as an image: all that is on its root file system, with an empty /run.
func overlayOfRoot(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Skipf("no mounts can be made here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	for _, name := range []string{"upper", "work", "root", "upper/run"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setxattr(filepath.Join(dir, "upper/run"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root")
	options := "lowerdir=/,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		t.Skipf("no overlay can be made here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	return root
}

// What a private command writes where programs do is its own and gone with it; elsewhere it writes nothing, and what it is told
// names the way out. Sockets are the real ones, and the disk that it sees is the guest's.
func TestPrivateViewOfReadonlyCommands(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can hold commands to what they say")
	}
	a := agenttest.Start(t, agenttest.Options{})
	c := a.Client(t, client.Options{})
	dir := t.TempDir()
	socket := fmt.Sprintf("/run/quantix-view-%d.sock", os.Getpid())
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, test := range []struct{ name, source, want string }{
		{"written", `return exec.sh("cd /run && echo x >quantix-view && cp quantix-view /tmp && cp quantix-view /var/log && cp quantix-view /var/tmp && cat /tmp/quantix-view /var/log/quantix-view /var/tmp/quantix-view", {readonly = true, private = true}).stdout`, "x\nx\nx\n"},
		{"what was there", `file.write("$/there", "content") return exec.sh("echo >/run/quantix-view && cat $/there", {readonly = true, private = true}).stdout`, "\ncontent"},
		{"the disk", `return exec.sh("df --output=source / /var | tail -n 1", {readonly = true}).stdout == exec.sh("df --output=source /var | tail -n 1", {readonly = true, unconfined = true}).stdout`, "true"},
		{"a socket", `return exec.sh("echo >/run/quantix-view && python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"` + socket + `\")' && echo connected", {readonly = true, private = true}).stdout`, "connected\n"},
	} {
		if test.name == "a socket" {
			if _, err := exec.LookPath("python3"); err != nil {
				continue
			}
		}
		reply := runIn(t, c, dir, test.source)
		got := reply.Result.GetStringValue()
		if _, ok := reply.Result.AsInterface().(bool); ok {
			got = map[bool]string{true: "true", false: "false"}[reply.Result.GetBoolValue()]
		}
		if strings.TrimLeft(got, "\n") != strings.TrimLeft(test.want, "\n") {
			t.Errorf("%s: %q, %v", test.name, got, reply.Error)
		}
	}
	for _, path := range []string{"/run/quantix-view", "/tmp/quantix-view", "/var/log/quantix-view", "/var/tmp/quantix-view"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
	reply := runIn(t, c, dir, `exec.sh("echo x >/etc/quantix-view", {readonly = true, private = true})`)
	if reply.Error == nil || !strings.Contains(reply.Error.Hint, "unconfined = true") {
		t.Error(reply)
	}
	if reply := runIn(t, c, dir, `exec.sh("echo x >$/free", {readonly = true, unconfined = true})`); reply.Error != nil {
		t.Error(reply.Error)
	}
	if text, err := os.ReadFile(dir + "/free"); err != nil || string(text) != "x\n" {
		t.Errorf("%q, %v", text, err)
	}
}

// A file that its program refuses is not put in place, and the old one stays; one that it takes is, as one call. Also in an
// image.
func TestFileIsValidatedBeforeItIsPutInPlace(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	c := a.Client(t, client.Options{})
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/old", []byte("old\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	before := picture(t, dir)
	for name, call := range map[string]string{
		"write": `file.write("$/old", "bad\n", {validate = check})`, "new": `file.write("$/new", "bad\n", {validate = check})`,
		"template": `file.template("$/old", "{{x}}\n", {x = "bad"}, {validate = check})`, "line": `file.line("$/old", {line = "bad", validate = check})`,
		"block": `file.block("$/old", {marker = "m", text = "bad", validate = check})`, "replace": `file.replace("$/old", "old", "bad", {validate = check})`,
	} {
		reply := runIn(t, c, dir, `local check = {"sh", "-c", "if grep -q bad '%s'; then echo it is bad >&2; exit 3; fi"} `+call)
		if e := reply.GetError(); !strings.Contains(e.GetMessage(), "it is not put in place: sh: exit code 3: it is bad") || e.GetOp() != "file."+strings.Replace(name, "new", "write", 1) {
			t.Errorf("%s: %v", name, e)
		}
		if after := picture(t, dir); after != before {
			t.Errorf("%s: before\n%s\nafter\n%s", name, before, after)
		}
	}
	reply := runIn(t, c, dir, `local check = {"grep", "-q", "good", "%s"} return {file.write("$/old", "good\n", {validate = check}), file.write("$/old", "good\n", {validate = check})}`)
	if fmt.Sprint(reply.Result.AsInterface()) != "[true false]" {
		t.Error(reply.Result, reply.Error)
	}
	for _, wrong := range []string{`file.write("$/old", "x", {validate = {"true"}})`, `file.append("$/old", "x", {validate = {"true", "%s"}})`, `file.write("$/old", "x", {validate = {"true", "%s"}, inplace = true})`} {
		if reply := runIn(t, c, dir, wrong); reply.GetError().GetCode() != "invalid" {
			t.Errorf("%s: %v", wrong, reply.Error)
		}
	}
	if text, err := os.ReadFile(dir + "/old"); err != nil || string(text) != "good\n" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := exec.LookPath("visudo"); err != nil || os.Geteuid() != 0 {
		t.Skip("visudo is not installed here, or commands in images need root")
	}
	image := overlayOfRoot(t)
	i := agenttest.Start(t, agenttest.Options{Root: image}).Client(t, client.Options{})
	const sudoers = `file.write("/etc/sudoers.d/quantix-test", %q, {mode = "0440", validate = {"visudo", "-cf", "%%s"}})`
	if reply := runIn(t, i, "", fmt.Sprintf(sudoers, "deploy ALL=(ALL NOPASSWD: ALL\n")); reply.GetError() == nil {
		t.Error("an error of syntax was taken")
	}
	if _, err := os.Stat(image + "/etc/sudoers.d/quantix-test"); err == nil {
		t.Error("it is there")
	}
	if reply := runIn(t, i, "", fmt.Sprintf(sudoers, "deploy ALL=(ALL) NOPASSWD: ALL\n")); reply.GetError() != nil {
		t.Error(reply.Error)
	}
	if info, err := os.Stat(image + "/etc/sudoers.d/quantix-test"); err != nil || info.Mode() != 0o440 {
		t.Error(info, err)
	}
}
