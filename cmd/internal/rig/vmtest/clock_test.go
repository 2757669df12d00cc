//go:build vm

package vmtest_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// rtc returns what the hardware clock of a machine tells, as if it were in UTC.
func rtc(t *testing.T, vm *vmtest.VM) time.Time {
	t.Helper()
	seconds, err := strconv.ParseInt(vm.Must(t, "cat /sys/class/rtc/rtc0/since_epoch"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Unix(seconds, 0)
}

// tolerance is what an emulated machine may take between two looks at its clock.
const tolerance = 10 * time.Second

func apart(a, b time.Time) bool { return a.Sub(b).Abs() > tolerance }

// The clock and the hardware clock are set, whatever the zone of the guest; nothing that waits in the agent notices.
func TestClockIsSet(t *testing.T) {
	t.Parallel()
	vm := machine(t, vmtest.Options{})
	before := bootID(t, vm)
	if zone := "/usr/share/zoneinfo/Asia/Tokyo"; vm.Put(limited(t, time.Minute), zone, "/etc/localtime", 0o644) != nil {
		t.Skip("needs tzdata: ", zone)
	}
	vm.Must(t, "systemctl restart quantix-kvm-agent")
	reports := make(chan time.Time, 1000)
	c := dial(t, vm, vmtest.AgentPort, client.Options{Event: func(_ string, event proto.Message) {
		if _, ok := event.(*pb.TelemetryReport); ok {
			reports <- time.Now()
		}
	}})
	if _, err := c.Shutdown(limited(t, time.Minute), &pb.ShutdownRequest{DelaySeconds: 600}); err != nil {
		t.Fatal(err)
	}
	for _, by := range []time.Duration{365 * 24 * time.Hour, -365 * 24 * time.Hour, 0} {
		target := time.Now().Add(by)
		reply, err := c.SyncTime(limited(t, time.Minute), &pb.SyncTimeRequest{SetTime: timestamppb.New(target), Force: true})
		if err != nil || !reply.Success || reply.TimeSource != "manual" || reply.Method != pb.ClockMethod_CLOCK_METHOD_STEP {
			t.Fatal(reply, err)
		}
		now := time.Now().Add(by)
		if !reply.RtcWritten || apart(rtc(t, vm), now) {
			t.Errorf("by %v the hardware clock tells %v, want %v: %v", by, rtc(t, vm), now, reply)
		}
		offset, err := c.ClockOffset(limited(t, time.Minute))
		if err != nil || (offset.Offset-by).Abs() > tolerance {
			t.Errorf("by %v: %+v %v", by, offset, err)
		}
		t.Logf("a step by %v: %v off afterwards, within %v; it was off by %.3f s", by, offset.Offset-by, offset.Uncertainty, reply.OffsetSeconds)
		for len(reports) > 0 {
			<-reports
		}
		for range 2 { // at their period, and neither at once nor in a year
			select {
			case <-reports:
			case <-time.After(time.Minute):
				t.Fatal("telemetry has stopped")
			}
		}
		status, err := client.Call[*pb.GetStatusResponse](limited(t, time.Minute), c, &pb.GetStatusRequest{})
		if p := status.GetPendingShutdown(); err != nil || p.GetType() != "poweroff" || p.RemainingMs > 600e3 || p.RemainingMs < 60e3 {
			t.Error("the pending shutdown has moved:", p, err)
		}
	}
	if bootID(t, vm) != before {
		t.Error("the guest was booted again")
	}
	vm.Must(t, "printf '0.0 0 0.0\\n0\\nLOCAL\\n' > /etc/adjtime")
	if reply, err := c.SyncTime(limited(t, time.Minute), &pb.SyncTimeRequest{SetTime: timestamppb.New(time.Now().Add(time.Hour))}); err != nil || apart(rtc(t, vm), time.Now().Add(10*time.Hour)) {
		t.Errorf("the hardware clock of a guest that has it in local time tells %v: %v %v", rtc(t, vm), reply, err)
	}
}

// What is no time changes nothing; a small offset is slewed; without a source nothing is guessed and nothing is turned on.
func TestClockIsLeftAlone(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	for _, wrong := range []*timestamppb.Timestamp{{Seconds: -1}, {Seconds: 1 << 61}, {Seconds: 1790000000, Nanos: -5}, {}} {
		if reply, err := c.SyncTime(limited(t, time.Minute), &pb.SyncTimeRequest{SetTime: wrong}); !errors.Is(err, fs.ErrInvalid) {
			t.Error(wrong, reply, err)
		}
	}
	now := time.Now()
	reply, err := c.SyncTime(limited(t, time.Minute), &pb.SyncTimeRequest{SetTime: timestamppb.New(now), Force: true})
	if err != nil {
		t.Fatal(reply, err)
	}
	offset, err := c.ClockOffset(limited(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	guest := time.Now().Add(offset.Offset + 300*time.Millisecond)
	if reply, err = c.SyncTime(limited(t, time.Minute), &pb.SyncTimeRequest{SetTime: timestamppb.New(guest)}); err != nil || reply.Method != pb.ClockMethod_CLOCK_METHOD_SLEW {
		t.Logf("the machine is too slow for an offset of 0.3 s: %v %v", reply, err)
	}
	timers := vm.Must(t, "timedatectl show -p NTP; ls /lib/systemd/system | grep -c timesyncd || true")
	if reply, err := c.SyncTime(limited(t, time.Minute), &pb.SyncTimeRequest{Force: true}); !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fault.ErrRefused) {
		t.Error(reply, err)
	} else {
		t.Log(err)
	}
	if got := vm.Must(t, "timedatectl show -p NTP; ls /lib/systemd/system | grep -c timesyncd || true"); got != timers || !strings.Contains(got, "NTP=no") {
		t.Errorf("network time was %q and is %q", timers, got)
	}
}

// The command line shows the clock and sets it, and reboots the guest.
func TestCLIOfTheMachine(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	dial(t, vm, vmtest.CtlPort, client.Options{}).Close()
	ctl, err := ctltest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(limited(t, 5*time.Minute), ctl, append([]string{"-s", vm.Socket(vmtest.CtlPort)}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		t.Logf("%q:\n%s", args, out)
		return string(out)
	}
	if out := run("time"); !strings.Contains(out, "offset to this host") {
		t.Error(out)
	}
	vm.Must(t, "date -s '+3 seconds'") // else there may be nothing to correct
	if out := run("time", "--set", "now", "--force"); !strings.Contains(out, "manual") || !strings.Contains(out, "step") {
		t.Error(out)
	}
	if out := run("shutdown", "--delay", "1h", "--message", "later"); !strings.Contains(out, "poweroff at") {
		t.Error(out)
	}
	if out := run("status"); !strings.Contains(out, "poweroff in ") {
		t.Error(out)
	}
	if out := run("shutdown", "--cancel"); !strings.Contains(out, "cancelled: poweroff") {
		t.Error(out)
	}
	before := bootID(t, vm)
	if out := run("reboot", "--wait"); !strings.Contains(out, "the guest serves again after") {
		t.Error(out)
	}
	if bootID(t, vm) == before {
		t.Error("it was not booted again")
	}
	if out := run("--json", "shutdown", "--wait"); !strings.Contains(out, `"seconds"`) {
		t.Error(out)
	}
	poweredOff(t, vm)
}

// The guest's own time daemon corrects the clock, and is waited for; one that is turned off stays off, and no packet leaves
// the guest. The image has no systemd-timesyncd: VMTEST_TIMESYNCD is its Debian package.
func TestClockByTimesyncd(t *testing.T) {
	deb := os.Getenv("VMTEST_TIMESYNCD")
	if deb == "" {
		t.Skip("needs the package systemd-timesyncd of Debian 12 as a file, in VMTEST_TIMESYNCD")
	}
	vm := machine(t, vmtest.Options{})
	server := filepath.Join(t.TempDir(), "sntp")
	build := exec.Command("go", "build", "-o", server, "./sntp")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for path, local := range map[string]string{"/usr/local/bin/sntp": server, "/var/tmp/timesyncd.deb": deb} {
		if err := vm.Put(limited(t, time.Minute), local, path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	vm.Must(t, "mkdir -p /etc/systemd/timesyncd.conf.d && printf '[Time]\\nNTP=127.0.0.1\\nFallbackNTP=\\n' > /etc/systemd/timesyncd.conf.d/test.conf")
	vm.Must(t, "dpkg --force-depends -i /var/tmp/timesyncd.deb >&2; systemctl daemon-reload; timedatectl set-ntp false")
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	if reply, err := c.SyncTime(limited(t, time.Minute), &pb.SyncTimeRequest{Force: true}); !errors.Is(err, fault.ErrRefused) {
		t.Error("a daemon that is turned off:", reply, err)
	}
	if got := vm.Must(t, "timedatectl show --value -p NTP; systemctl is-active systemd-timesyncd || true"); got != "no\ninactive" {
		t.Errorf("it was turned on: %q", got)
	}
	const ahead = 3600
	vm.Must(t, "systemd-run --unit=sntp /usr/local/bin/sntp 127.0.0.1:123 3600 && timedatectl set-ntp false")
	vm.Must(t, "mkdir -p /run/systemd/system/systemd-timesyncd.service.d && printf '[Unit]\\nConditionVirtualization=\\n' > /run/systemd/system/systemd-timesyncd.service.d/vm.conf; systemctl daemon-reload; timedatectl set-ntp true")
	eventually(t, vm, "the daemon's first correction", "timedatectl timesync-status | grep -q 'Packet count: [1-9]'")
	began := time.Now()
	if _, err := c.SyncTime(limited(t, time.Minute), &pb.SyncTimeRequest{SetTime: timestamppb.New(time.Now().Add(-time.Hour)), Force: true}); err != nil {
		t.Fatal(err)
	}
	reply, err := c.SyncTime(limited(t, time.Minute), &pb.SyncTimeRequest{Force: true})
	if err != nil || !reply.Success || reply.TimeSource != "systemd-timesyncd" {
		t.Fatal(reply, err)
	}
	t.Logf("after %v: %v", time.Since(began), reply)
	offset, err := c.ClockOffset(limited(t, time.Minute))
	if err != nil || (offset.Offset-ahead*time.Second).Abs() > tolerance {
		t.Errorf("the clock is %v ahead, and its server %d s: %v", offset.Offset, ahead, err)
	}
	if reply, err := c.SyncTime(limited(t, time.Minute), &pb.SyncTimeRequest{Measure: true}); err != nil || reply.Method != pb.ClockMethod_CLOCK_METHOD_NONE {
		t.Error(reply, err)
	}
	vm.Must(t, "systemctl stop sntp")
	if reply, err := c.SyncTime(limited(t, time.Minute), &pb.SyncTimeRequest{Force: true}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("a server that does not answer:", reply, err)
	}
}
