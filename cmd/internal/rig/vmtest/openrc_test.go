//go:build vm

package vmtest_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// openrcServices stand for those of a distribution that the agent's service names.
const openrcServices = `
for service in localmount bootmisc net; do
	printf '#!/sbin/openrc-run\nstart() { :; }\n' > etc/init.d/$service
	chmod 755 etc/init.d/$service
done
rm -f etc/init.d/networking etc/init.d/procps etc/init.d/ssh etc/init.d/kmod etc/init.d/udev etc/init.d/dbus etc/init.d/sudo
rm -f usr/lib/systemd/systemd usr/lib/systemd/systemd-* usr/bin/systemctl
ln -s ../../init.d/localmount etc/runlevels/boot/
`

// openrc boots a container with the OpenRC of Debian as its init, and no systemd.
func openrc(t *testing.T, o containerOptions) *container {
	t.Helper()
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		t.Skip("needs apt-get, for Debian's openrc")
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(limited(t, 2*time.Minute), apt, "-q", "-o", "APT::Sandbox::User=root", "download", "openrc", "libeinfo1", "librc1")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("cannot get Debian's openrc: %v: %s", err, out)
	}
	o.prepare = `for deb in ` + dir + `/*.deb; do dpkg-deb --fsys-tarfile $deb | tar -x --keep-directory-symlink; done` + openrcServices + o.prepare
	o.init, o.ready = "/sbin/openrc-init", "test -e /run/openrc/started/localmount && ! rc-status -r | grep -v default"
	return bootContainer(t, o)
}

// withOpenRC are commands where OpenRC has the agent as its service.
func withOpenRC(install, upgrade, remove string) life {
	return life{
		install, upgrade, remove, "test -e /etc/runlevels/default/quantix-kvm-agent && test -e /etc/runlevels/boot/quantix-kvm-agent-recover",
		"rc-service -q quantix-kvm-agent status", false,
	}
}

// The tarball under OpenRC, by its install.sh: it is started, supervised, reloaded, upgraded and removed.
func TestTarballUnderOpenRC(t *testing.T) {
	longPackages(t)
	dir := t.TempDir()
	c := openrc(t, containerOptions{})
	for _, version := range []string{present, newer} {
		must(t, vmtest.Packages(limited(t, 5*time.Minute), dir, version, "tar"))
		c.put(filepath.Join(dir, "quantix-kvm-agent-"+version+"-linux-amd64.tar.gz"), "/opt/"+version+".tar.gz")
		c.run("tar -C /opt -xzf /opt/" + version + ".tar.gz")
	}
	path := func(version string) string { return "/opt/quantix-kvm-agent-" + version + "/install.sh" }
	l := withOpenRC(path(present), path(newer), path(newer)+" --uninstall")
	c.lives(l)

	// A reload, a process that dies, and what a boot begins with: it takes back what was interrupted, before an agent runs.
	c.run(l.install + " && echo welcome > /etc/motd")
	before := c.status().Pid
	c.run("rc-service quantix-kvm-agent reload")
	c.run(fmt.Sprintf("kill -KILL %d", before))
	if after := c.status().Pid; after == before {
		t.Error("process", after)
	}
	conn := c.agent()
	source := fmt.Sprintf(`file.remove("/etc/motd") exec.sh("kill -KILL $(cat /run/quantix-kvm-agent.pid); kill -KILL %d; sleep 60", {irreversible = true})`, c.status().Pid)
	_, err := client.Call[*pb.RunScriptResponse](limited(t, time.Minute), conn, &pb.RunScriptRequest{Source: []byte(source)})
	conn.Close()
	if !client.Gone(err) {
		t.Error("the agent was not killed:", err)
	}
	c.run("! test -e /etc/motd && rm -f /run/openrc/started/quantix-kvm-agent-recover && rc-service quantix-kvm-agent-recover start && grep -qx welcome /etc/motd")
	c.run("rc-service quantix-kvm-agent zap && rc-service quantix-kvm-agent start")
	c.version()
}

// The package of apk under OpenRC, where apk itself is there: Debian has none.
func TestAPKUnderOpenRC(t *testing.T) {
	longPackages(t)
	program, err := exec.LookPath("apk")
	if err != nil {
		t.Skip("needs apk, the package manager of Alpine, in PATH: Debian has no package of it")
	}
	program, err = filepath.EvalSymlinks(program)
	must(t, err)
	dir := t.TempDir()
	c := openrc(t, containerOptions{files: withLibraries(t, program), prepare: "ln -s " + program + " usr/bin/apk"})
	for _, version := range []string{present, newer} {
		must(t, vmtest.Packages(limited(t, 5*time.Minute), dir, version, "apk"))
		list, err := filepath.Glob(dir + "/quantix-kvm-agent_" + version + "_*.apk")
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		c.put(list[0], "/opt/"+version+".apk")
	}
	must(t, os.MkdirAll(filepath.Join(c.root, "etc/apk"), 0o755))
	c.run("apk add --initdb --no-network --allow-untrusted --no-cache --arch x86_64")
	const apk = "apk --no-network --allow-untrusted --force-non-repository add /opt/"
	l := withOpenRC(apk+present+".apk", apk+newer+".apk", "apk --no-network del quantix-kvm-agent")
	l.removes = true
	c.lives(l)
}
