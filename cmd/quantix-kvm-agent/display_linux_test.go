package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The outputs of a user's X server are set through the agent, its helper in the session, and scripts; without one everybody is
// told so. The test runs in namespaces of its own, where there is no other session.
func TestDisplay(t *testing.T) {
	const isolated = "QUANTIX_DISPLAY_TEST"
	if os.Getenv(isolated) == "" {
		if os.Getuid() != 0 {
			t.Skip("needs root, for namespaces and to act as another user")
		}
		for _, program := range []string{"Xvfb", "xrandr"} {
			if _, err := exec.LookPath(program); err != nil {
				t.Skipf("needs %s (apt-get install --no-install-recommends xvfb x11-xserver-utils)", program)
			}
		}
		binary, err := agenttest.Binary()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", os.Args[0],
			"-test.run", "^TestDisplay$", "-test.v")
		cmd.Env = append(os.Environ(), isolated+"="+binary)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	// Other displays are not seen, nor the system bus, where a logind would not know of this one.
	for _, dir := range []string{"/tmp/.X11-unix", "/run/dbus"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=1777"); err != nil {
			t.Fatal(err)
		}
	}
	displayThroughTheAgent(t, agenttest.Start(t, agenttest.Options{Binary: os.Getenv(isolated)}))
}

func displayThroughTheAgent(t *testing.T, a *agenttest.Agent) {
	c := a.Client(t, client.Options{})
	ctx := ctxFor(t, 2*time.Minute)
	announced := func() bool {
		can, err := client.Call[*pb.GetCapabilitiesResponse](ctx, c, &pb.GetCapabilitiesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(can.Capabilities, "display_resize") && can.Features["display_resize"] != ""
	}
	resize := func(width, height uint32) (*pb.DisplayResizeResponse, error) {
		return client.Call[*pb.DisplayResizeResponse](ctx, c, &pb.DisplayResizeRequest{Width: width, Height: height})
	}
	if announced() {
		t.Error("display_resize is announced without a desktop")
	}
	if _, err := resize(800, 600); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("without a desktop: %v", err)
	}

	const user = 12345
	display := fmt.Sprintf(":%d", 1000+time.Now().UnixMicro()%50000) // its lock file is beside those of others
	as := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}, Pdeathsig: unix.SIGKILL}
	for _, argv := range [][]string{
		{"Xvfb", display, "-screen", "0", "1600x1200x24", "-nolisten", "tcp", "-noreset"}, {"sleep", "1000"},
	} {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr, cmd.Env = as, []string{"DISPLAY=" + display, "PATH=" + os.Getenv("PATH")}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Signal(unix.SIGTERM) // so that Xvfb takes its lock file away
	}
	for end := time.Now().Add(30 * time.Second); !announced(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			_, err := resize(1111, 777)
			t.Fatalf("display_resize is not announced with a desktop: %v", err)
		}
	}
	current := regexp.MustCompile(`current (\d+) x (\d+)`)
	seen := func(want string) {
		t.Helper()
		out, err := exec.Command("xrandr", "-d", display).CombinedOutput()
		if err != nil {
			t.Fatalf("%v %s", err, out)
		}
		if got := current.FindSubmatch(out); got == nil || fmt.Sprintf("%sx%s", got[1], got[2]) != want {
			t.Errorf("xrandr tells %q, not %s", got, want)
		}
	}
	seen("1600x1200")
	if out, err := resize(1111, 777); err != nil || out.ActualWidth != 1111 || out.ActualHeight != 777 {
		t.Errorf("%v, %v", out, err)
	}
	seen("1111x777")
	if _, err := resize(2000, 2000); err == nil || !strings.Contains(err.Error(), "1600x1200") {
		t.Errorf("more than the server has: %v", err)
	}
	seen("1111x777")
	list, err := c.Displays(ctx)
	if err != nil || len(list.Outputs) != 1 || list.System != "x11" || list.Outputs[0].Width != 1111 {
		t.Errorf("%v, %v", list, err)
	}

	// A script that fails leaves the layout as it was; one that does not has the same changes as its dry run.
	run := func(source string, dry bool) *pb.RunScriptResponse {
		t.Helper()
		reply, err := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(source), DryRun: dry})
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	failed := run(`display.set(900, 700) error(display.list().outputs[1].width)`, false)
	if failed.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || !strings.Contains(failed.Error.GetMessage(), "900") {
		t.Errorf("%v", failed)
	}
	seen("1111x777")
	const layout = `return display.layout({{name = "screen", width = 1280, height = 960}})`
	dry := run(layout, true)
	seen("1111x777")
	wet := run(layout, false)
	seen("1280x960")
	if len(dry.Changes) != 1 || len(wet.Changes) != 1 || dry.Changes[0].Diff != wet.Changes[0].Diff || !wet.Result.GetBoolValue() {
		t.Errorf("%v\n%v", dry, wet)
	}
	if again := run(layout, false); len(again.Changes) != 0 || again.Result.GetBoolValue() {
		t.Errorf("a second run: %v", again)
	}
}
