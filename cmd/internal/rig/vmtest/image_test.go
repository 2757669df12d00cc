//go:build vm

package vmtest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/image"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What is made of an image: the agent's own package is installed, then there is a site with its user, its unit and what each
// machine does at its first boot. image-cleanup, which every agent has, is the third one.
const (
	installAgentScript = `return script {
  name = "install-agent", version = "1", needs = {"file", "exec"},
  run = function()
    file.write("/var/tmp/agent.deb", file.attachment("0")) -- a value has at most 8 MiB
    file.append("/var/tmp/agent.deb", file.attachment("1"))
    exec.run({"dpkg", "-i", "/var/tmp/agent.deb"}, {irreversible = true})
    file.remove("/var/tmp/agent.deb")
  end,
}`
	siteScript = `return script {
  name = "site", version = "1", needs = {"file", "account", "service"}, params = {fail = {type = "boolean", default = false}},
  run = function(p)
    account.create("site", {system = true, comment = "runs the site"})
    file.mkdir("/srv/site", {owner = "site"})
    file.write("/etc/systemd/system/site.service",
      "[Service]\nType=oneshot\nRemainAfterExit=yes\nUser=site\nExecStart=/usr/bin/touch /srv/site/started\n[Install]\nWantedBy=multi-user.target\n")
    service.enable("site")
    file.mkdir("/etc/quantix-kvm/firstboot.d")
    file.write("/etc/quantix-kvm/firstboot.d/10-name.lua", [[file.write("/etc/first-boot", params.word .. " " .. host.info().machine_id .. "\n")]])
    file.write("/etc/quantix-kvm/firstboot.d/10-name.json", '{"word": "once"}')
    if p.fail then
      file.remove("/etc/motd")
      error("it fails")
    end
  end,
}`
)

// picture is the SHA-256 of all that an image has: names, contents, owners, modes, times, links, attributes. The image is
// mounted where nobody else sees it, and not written.
func picture(t *testing.T, image string) string {
	t.Helper()
	out, err := exec.Command("unshare", "-m", "sh", "-ec", `mount -o ro,noload,loop "$1" "$2"
		tar -C "$2" --sort=name --format=posix --pax-option=exthdr.name=x,delete=atime,delete=ctime --numeric-owner --xattrs \
			--xattrs-include='*' -cf - . | sha256sum`, "sh", image, t.TempDir()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// An image of Debian, as mmdebstrap makes it, becomes one with the agent by three scripts: twice the same, and unchanged by
// one that fails. Booted, it runs its first-boot script, and the agent serves.
func TestImageIsBuiltAndBooted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting an image needs root")
	}
	root, err := image.FindRoot()
	must(t, err)
	deb, err := packages.get(present)
	must(t, err)
	agent, dir := unpacked(t, present), t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	whole, err := os.ReadFile(deb)
	must(t, err)
	parts := []string{write("0", string(whole[:len(whole)/2])), write("1", string(whole[len(whole)/2:]))}
	scripts := []string{write("install-agent.lua", installAgentScript), write("site.lua", siteScript), "image-cleanup"}
	apply := func(disk string, scripts []string, args ...string) (string, int) {
		args = append([]string{"apply", "--image", disk, "--state", disk + ".state", "--attach", "0=" + parts[0], "--attach", "1=" + parts[1]}, args...)
		cmd := exec.Command(agent, append(args, scripts...)...)
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
		began := time.Now()
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		t.Logf("%v of %d scripts took %v", err, len(scripts), time.Since(began).Round(10*time.Millisecond))
		return string(out), cmd.ProcessState.ExitCode()
	}
	var pictures, locks []string
	var disks []string
	for _, name := range []string{"one", "two"} {
		disk := filepath.Join(dir, name+".raw")
		if out, err := exec.Command("cp", "--sparse=always", root.Disk, disk).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if name == "one" {
			before := picture(t, disk)
			if out, code := apply(disk, scripts[1:2], "-p", "fail=true"); code != 5 || !strings.Contains(out, "everything is as it was") {
				t.Fatalf("%d\n%s", code, out)
			}
			if picture(t, disk) != before {
				t.Error("a script that failed has changed the image")
			}
		}
		if out, code := apply(disk, scripts, "--lock", disk+".lock"); code != 0 {
			t.Fatalf("%d\n%s", code, out)
		}
		if out, code := apply(disk, scripts[1:2], "--drift"); code != 0 {
			t.Errorf("drift: %d\n%s", code, out)
		}
		lock, err := os.ReadFile(disk + ".lock")
		must(t, err)
		disks, pictures, locks = append(disks, disk), append(pictures, picture(t, disk)), append(locks, string(lock))
	}
	if pictures[0] != pictures[1] || locks[0] != locks[1] {
		t.Errorf("the same image built twice is another one: %q %q", pictures, locks)
	}

	disk := filepath.Join(dir, "disk.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", disks[0], "-F", "raw", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	began := time.Now()
	vm := vmtest.Start(t, vmtest.Options{Fresh: true, Disk: disk})
	t.Logf("the first boot took %v", time.Since(began).Round(time.Second))
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	defer c.Close()
	var s *pb.GetStatusResponse
	for ctx := limited(t, 2*time.Minute); ; {
		s, err = client.Call[*pb.GetStatusResponse](ctx, c, &pb.GetStatusRequest{})
		must(t, err)
		if state := s.FirstBoot.GetState(); state == pb.FirstBootState_FIRST_BOOT_STATE_CONFIGURED || state == pb.FirstBootState_FIRST_BOOT_STATE_FAILED {
			break
		}
		if !pause(ctx, 100*time.Millisecond) {
			t.Fatal(s.FirstBoot)
		}
	}
	id := vm.Must(t, "cat /etc/machine-id")
	if s.FirstBoot.State != pb.FirstBootState_FIRST_BOOT_STATE_CONFIGURED || s.Version != present || len(id) != 32 {
		t.Error(s.FirstBoot, s.Version, id)
	}
	if got := vm.Must(t, "cat /etc/first-boot"); !strings.HasPrefix(got, "once ") {
		t.Errorf("%q", got)
	}
	eventually(t, vm, "the unit of the site", `test "$(stat -c %U /srv/site/started)" = site`)
}
