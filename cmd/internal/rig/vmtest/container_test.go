//go:build vm

package vmtest_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/image"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// container is the guest's own root file system, booted by its own systemd in systemd-nspawn: what needs a service manager
// and no kernel of its own is looked at there in seconds.
type container struct {
	testing.TB
	init int    // its process 1, as the host sees it
	root string // its root, as the host sees it
}

// containerOptions say what differs from a container that boots the systemd of the guest.
type containerOptions struct {
	files   []string // of the host, by their paths, that its root has as well
	prepare string   // a line of shell that is run in the directory of its root before the boot
	init    string   // its process 1; empty: systemd
	ready   string   // a line of shell that succeeds when it has booted
}

// containers counts those booted by this process, to give each a name of its own.
var containers atomic.Int32

// bootContainer boots one. All of it is in a mount namespace of its own and gone with it.
func bootContainer(t testing.TB, o containerOptions) *container {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("systemd-nspawn"); err != nil {
		t.Skip("needs systemd-nspawn: apt-get install --no-install-recommends systemd-container")
	}
	if o.init == "" {
		o.init, o.ready = "-b", "systemctl is-active multi-user.target"
	}
	layer, err := image.FindRoot()
	must(t, err)
	dir := t.TempDir()
	var said bytes.Buffer
	cmd := exec.Command("unshare", append([]string{"-m", "sh", "-ec", `
		mount -t tmpfs tmpfs "$1"
		cd "$1"
		mkdir lower upper work root
		mount -o ro,noload,loop "$2" lower
		mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay root
		name=$3 prepare=$4 init=$5
		shift 5
		if [ $# -gt 0 ]; then tar -C / -chf - -- "$@" | tar -C root --skip-old-files --keep-directory-symlink -xf -; fi
		(cd root && sh -ec "$prepare")
		exec systemd-nspawn -D root --register=no --keep-unit --private-network --machine="$name" "$init"`,
		"sh", dir, layer.Disk, fmt.Sprintf("agent-%d-%d", os.Getpid(), containers.Add(1)), o.prepare, o.init}, o.files...)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	must(t, cmd.Start())
	c := &container{TB: t}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		if c.init != 0 {
			_ = unix.Kill(c.init, unix.SIGKILL) // and all in it with it
		}
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("%s", said.Bytes())
		}
	})
	for ctx := limited(t, 2*time.Minute); ; {
		select {
		case <-ended:
			t.Skipf("systemd-nspawn does not work here: %s", said.Bytes())
		default:
		}
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if fmt.Sscan(string(text), &c.init); c.init != 0 && c.command(o.ready).Run() == nil {
			break
		}
		if !pause(ctx, 50*time.Millisecond) {
			t.Fatalf("it does not boot: %s", said.Bytes())
		}
	}
	c.root = fmt.Sprintf("/proc/%d/root", c.init)
	return c
}

func (c *container) command(line string) *exec.Cmd {
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	c.Cleanup(stop)
	return exec.CommandContext(ctx, "nsenter", "-t", fmt.Sprint(c.init), "-m", "-u", "-i", "-n", "-p", "sh", "-c", line)
}

// run runs a line of shell, which must succeed, and returns what it prints.
func (c *container) run(line string) string {
	c.Helper()
	out, err := c.command(line).CombinedOutput()
	if err != nil {
		c.Fatalf("%s: %v\n%s", line, err, out)
	}
	return strings.TrimSpace(string(out))
}

// put copies a file of the host into the container.
func (c *container) put(from, to string) {
	c.Helper()
	text, err := os.ReadFile(from)
	must(c, err)
	must(c, os.WriteFile(filepath.Join(c.root, to), text, 0o644))
}

// agent asks the agent in the container, which listens on a socket.
func (c *container) agent() *client.Client {
	c.Helper()
	ctx := limited(c, time.Minute)
	for {
		conn, err := client.Dial(ctx, filepath.Join(c.root, "run/test.sock"), client.Options{})
		if err == nil {
			if err = conn.Alive(ctx); err == nil {
				return conn
			}
			conn.Close()
		}
		if !pause(ctx, 50*time.Millisecond) {
			c.Fatal("no agent answers: ", err)
		}
	}
}

// version is that of the agent which answers, once it serves.
func (c *container) version() string {
	c.Helper()
	return c.status().Version
}

// status is that of the agent which answers, once it serves.
func (c *container) status() *pb.GetStatusResponse {
	c.Helper()
	for ctx := limited(c, time.Minute); ; {
		conn := c.agent()
		s, err := client.Call[*pb.GetStatusResponse](ctx, conn, &pb.GetStatusRequest{})
		conn.Close()
		if err == nil && s.State == pb.AgentState_AGENT_STATE_SERVING {
			return s
		}
		if !pause(ctx, 50*time.Millisecond) {
			c.Fatal(s, err)
		}
	}
}

// begin runs a script that awaits its confirmation, and returns its transaction.
func (c *container) begin() string {
	c.Helper()
	conn := c.agent()
	defer conn.Close()
	reply, err := client.Call[*pb.RunScriptResponse](limited(c, time.Minute), conn, &pb.RunScriptRequest{
		Source: []byte(`file.write("/etc/open", "changed\n") file.remove("/etc/motd")`), ConfirmSeconds: proto.Uint32(1800),
	})
	if err != nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM {
		c.Fatal(reply, err)
	}
	c.run("test -e /etc/open && ! test -e /etc/motd")
	return reply.TransactionId
}

func (c *container) settle(id string, action pb.ConfirmAction) {
	c.Helper()
	conn := c.agent()
	defer conn.Close()
	reply, err := client.Call[*pb.ConfirmResponse](limited(c, time.Minute), conn, &pb.ConfirmRequest{TransactionId: id, Action: action})
	want := map[pb.ConfirmAction]pb.ScriptStatus{
		pb.ConfirmAction_CONFIRM_ACTION_CONFIRM:  pb.ScriptStatus_SCRIPT_STATUS_COMMITTED,
		pb.ConfirmAction_CONFIRM_ACTION_ROLLBACK: pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK,
	}[action]
	if err != nil || reply.Status != want {
		c.Fatal(reply, err)
	}
}

// life are the commands of a package manager and a service manager.
type life struct {
	install, upgrade, remove, enabled, active string
	removes                                   bool // also while a transaction is open: the manager asks nobody
}

// withSystemd are commands where systemd has the agent as its service.
func withSystemd(install, upgrade, remove string) life {
	return life{
		install, upgrade, remove, "systemctl -q is-enabled quantix-kvm-agent", "systemctl -q is-active quantix-kvm-agent", false,
	}
}

// lives installs a package, upgrades it while a transaction is open and after a kill in the middle of a script, and removes
// it. What is open goes on under the new version; with it the package is not removed.
func (c *container) lives(l life) {
	c.Helper()
	c.run("mkdir -p /etc/quantix-kvm && echo 'device_path: unix:/run/test.sock' > /etc/quantix-kvm/agent.yaml && echo welcome > /etc/motd")
	c.run(l.install)
	if v := c.version(); v != present {
		c.Error("version", v)
	}
	id := c.begin()
	c.run(l.upgrade)
	if v := c.version(); v != newer {
		c.Error("after the upgrade version", v)
	}
	c.run(l.enabled + " && grep -q test.sock /etc/quantix-kvm/agent.yaml")
	c.settle(id, pb.ConfirmAction_CONFIRM_ACTION_ROLLBACK)
	c.run("! test -e /etc/open && grep -qx welcome /etc/motd")

	// Through a kill of the former version in the middle of a script.
	pid, conn := c.status().Pid, c.agent()
	source := fmt.Sprintf(`file.remove("/etc/motd") exec.sh("kill -KILL %d; sleep 60", {irreversible = true})`, pid)
	_, err := client.Call[*pb.RunScriptResponse](limited(c, time.Minute), conn, &pb.RunScriptRequest{Source: []byte(source)})
	if !client.Gone(err) {
		c.Error("the agent was not killed:", err)
	}
	conn.Close()
	c.run(l.upgrade)
	c.version()
	c.run("grep -qx welcome /etc/motd")

	id = c.begin()
	if out, err := c.command(l.remove).CombinedOutput(); (err == nil) != l.removes || !bytes.Contains(out, []byte("a transaction is open")) {
		c.Errorf("a removal with an open transaction: %v\n%s", err, out)
	}
	if l.removes {
		c.run("! { " + l.enabled + "; }")
		c.run(l.upgrade)
	}
	c.version()
	c.settle(id, pb.ConfirmAction_CONFIRM_ACTION_CONFIRM)
	c.run(l.remove)
	c.run("test -e /etc/open && ! test -e /usr/bin/quantix-kvm-agent && ! { " + l.active + "; } && test -d /var/lib/quantix-kvm")
}

// The package of Debian, from its installation to its purge.
func TestDebInAContainer(t *testing.T) {
	longPackages(t)
	paths := map[string]string{}
	for _, version := range []string{present, newer} {
		path, err := packages.get(version)
		must(t, err)
		paths[version] = path
	}
	began := time.Now()
	defer func() { t.Logf("without the builds it took %v", time.Since(began).Round(time.Second)) }()
	c := bootContainer(t, containerOptions{})
	for version, path := range paths {
		c.put(path, "/opt/"+version+".deb")
	}
	const dpkg = "dpkg --force-confold -i /opt/"
	c.lives(withSystemd(dpkg+present+".deb", dpkg+newer+".deb", "dpkg -r quantix-kvm-agent"))
	c.run("test -e /etc/quantix-kvm/agent.yaml")
	c.run("dpkg -P quantix-kvm-agent")
	if left := c.run("ls -d /etc/quantix-kvm /var/lib/quantix-kvm /run/quantix-kvm /etc/systemd/system/*quantix* 2>/dev/null; dpkg -l | grep quantix || true"); left != "" {
		t.Errorf("the purge leaves %s", left)
	}

	// Beside cloud-init: a first-boot script that this writes late, as write_files of user data does, is run when it has ended.
	c.run("mkdir -p /etc/quantix-kvm/firstboot.d /run/cloud-init && touch /run/cloud-init/enabled && " +
		"echo 'device_path: unix:/run/test.sock' > /etc/quantix-kvm/agent.yaml")
	c.run(dpkg + present + ".deb")
	if s := c.status().FirstBoot; s.GetState() == pb.FirstBootState_FIRST_BOOT_STATE_CONFIGURED {
		t.Error("cloud-init has not ended, and the first boot is", s)
	}
	c.run(`echo 'file.write("/etc/from-cloud-init", "yes")' > /etc/quantix-kvm/firstboot.d/50-site.lua && echo '{}' > /run/cloud-init/result.json`)
	for ctx := limited(t, time.Minute); c.status().FirstBoot.GetState() != pb.FirstBootState_FIRST_BOOT_STATE_CONFIGURED; {
		if !pause(ctx, 100*time.Millisecond) {
			t.Fatal(c.status().FirstBoot)
		}
	}
	c.run("grep -q yes /etc/from-cloud-init")
}

// longPackages skips a test of packages that takes a minute, unless it is asked for.
func longPackages(t *testing.T) {
	t.Helper()
	if os.Getenv("QUANTIX_PACKAGES") == "" {
		t.Skip("takes a minute: set QUANTIX_PACKAGES=1")
	}
}

// withLibraries returns a program and what it is linked with.
func withLibraries(t *testing.T, program string) []string {
	t.Helper()
	files := []string{program}
	libraries, err := exec.Command("ldd", program).Output()
	must(t, err)
	for _, word := range strings.Fields(string(libraries)) {
		if filepath.IsAbs(word) && !strings.Contains(word, "/ld-linux") {
			files = append(files, word)
		}
	}
	return files
}

// The package of rpm in a root of rpm's own, with a systemd that runs.
func TestRPMInAContainer(t *testing.T) {
	longPackages(t)
	program, err := exec.LookPath("rpm")
	if err != nil {
		t.Skip("needs rpm: apt-get install --no-install-recommends rpm")
	}
	c := bootContainer(t, containerOptions{files: append(withLibraries(t, program), "/usr/lib/rpm")})
	for _, version := range []string{present, newer} {
		dir := t.TempDir()
		must(t, vmtest.Packages(limited(t, 5*time.Minute), dir, version, "rpm"))
		list, err := filepath.Glob(dir + "/quantix-kvm-agent-*.rpm")
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		c.put(list[0], "/opt/"+version+".rpm")
	}
	c.lives(withSystemd("rpm -i --nodeps /opt/"+present+".rpm", "rpm -U --force --nodeps /opt/"+newer+".rpm", "rpm -e quantix-kvm-agent"))
	if left := c.run("rpm -qa | grep quantix || true"); left != "" {
		t.Errorf("%s is left", left)
	}
}
