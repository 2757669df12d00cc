//go:build vm

package vmtest_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
)

// domain describes the machine to libvirt.
const domain = `<domain type='qemu'><name>web</name><memory unit='MiB'>768</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type><kernel>%s</kernel><initrd>%s</initrd><cmdline>%s</cmdline></os>
<features><acpi/></features><cpu mode='maximum'/>
<devices><emulator>%s</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>
<channel type='unix'><target type='virtio' name='org.quantix.agent.0'/></channel>
<channel type='unix'><target type='virtio' name='org.quantix.agent.1'/></channel>
<serial type='file'><source path='%s'/></serial><memballoon model='none'/></devices></domain>`

// The way to take a snapshot by libvirt that scripts/README.md describes, with a libvirtd of the test's own: the line of the
// guide is run as it stands there. QUANTIX_LIBVIRT=1 has the test run.
func TestQuiesceByLibvirt(t *testing.T) {
	if os.Getenv("QUANTIX_LIBVIRT") == "" || os.Geteuid() != 0 {
		t.Skip("set QUANTIX_LIBVIRT=1, as root; needs Debian's libvirt-daemon, libvirt-daemon-driver-qemu and libvirt-clients")
	}
	daemon, err := exec.LookPath("libvirtd")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../../../scripts/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, line, found := strings.Cut(string(text), "With libvirt:\n\n```\n")
	line, _, ends := strings.Cut(line, "\n```")
	if !found || !ends || !strings.HasPrefix(line, "quantix-kvm-ctl --vm web freeze") {
		t.Fatalf("the line is not in the guide: %q", line)
	}
	dir := t.TempDir()
	ctl := filepath.Join(dir, "quantix-kvm-ctl")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", ctl, "../../../quantix-kvm-ctl").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	disk := filepath.Join(dir, "disk.qcow2")
	vm := vmtest.Start(t, vmtest.Options{Fresh: true, Disk: disk})
	startAgent(t, vm)
	vm.Must(t, "systemctl is-enabled quantix-kvm-agent && sync")
	kernel, initrd, arguments := vm.BootFiles()
	if err := vm.Kill(); err != nil {
		t.Fatal(err)
	}

	// In a mount namespace of its own, with its own state and configuration.
	configuration := filepath.Join(dir, "qemu.conf")
	const words = `user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
`
	emulator, err := exec.LookPath("qemu-system-x86_64")
	if err == nil {
		err = os.WriteFile(configuration, []byte(words), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	script := `set -e
mkdir -p /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt
for f in passwd group; do # the user that Debian's build looks for, which libvirt-daemon-system makes
	cp /etc/$f "$1.$f"
	grep -q ^libvirt-qemu: /etc/$f || case $f in
	passwd) echo 'libvirt-qemu:x:64055:64055::/:/bin/false' >>"$1.$f" ;;
	group) echo 'libvirt-qemu:x:64055:' >>"$1.$f" ;;
	esac
	mount --bind "$1.$f" /etc/$f
done
for d in /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt; do mount -t tmpfs none $d; done
mkdir /var/log/libvirt/qemu /var/lib/libvirt/qemu; cp "$1" /etc/libvirt/qemu.conf; exec "$2"`
	libvirtd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", configuration, daemon)
	said, err := os.Create(filepath.Join(dir, "libvirtd.log"))
	if err != nil {
		t.Fatal(err)
	}
	libvirtd.Stdout, libvirtd.Stderr = said, said
	if err := libvirtd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = libvirtd.Process.Signal(syscall.SIGTERM)
		_ = libvirtd.Wait()
		if text, err := os.ReadFile(said.Name()); err == nil && t.Failed() {
			t.Logf("libvirtd: %s", text)
		}
	})
	run := func(limit time.Duration, line string) (string, error) {
		cmd := exec.CommandContext(limited(t, limit), "nsenter", "--mount", "-t", fmt.Sprint(libvirtd.Process.Pid), "sh", "-c", line)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "LIBVIRT_DEFAULT_URI=qemu:///system")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	until := func(what, line string) {
		t.Helper()
		var out string
		err := errors.New("it was not tried")
		for deadline := time.Now().Add(2 * time.Minute); err != nil; time.Sleep(300 * time.Millisecond) {
			if out, err = run(time.Minute, line); time.Now().After(deadline) {
				t.Fatalf("%s: %v: %s", what, err, out)
			}
		}
	}
	until("libvirtd answers", "virsh version")
	file := filepath.Join(dir, "web.xml")
	xml := fmt.Sprintf(domain, kernel, initrd, arguments, emulator, disk, filepath.Join(dir, "console"))
	if err := os.WriteFile(file, []byte(xml), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run(2*time.Minute, "virsh define "+file+" && virsh start web"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _, _ = run(time.Minute, "virsh destroy web") })
	until("the agent answers", "quantix-kvm-ctl --vm web ping")
	load := `quantix-kvm-ctl --vm web exec -- sh -c '(cd /root; while :; do date >>load; done) </dev/null >/dev/null 2>&1 &'`
	if out, err := run(time.Minute, load); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := run(2*time.Minute, line)
	t.Logf("%s: %v: %s", line, err, out)
	if err != nil {
		t.Fatal("the line of the guide failed")
	}
	raw := filepath.Join(dir, "disk.raw")
	if out, err := exec.Command("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", disk, raw).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if dirty, found := replays(t, raw); dirty || found != "" {
		t.Errorf("replay %v\n%s", dirty, found)
	}
	if out, err := run(time.Minute, "quantix-kvm-ctl --vm web exec -- touch /root/written"); err != nil {
		t.Errorf("the guest is still frozen: %v: %s", err, out)
	}
}
