package winguest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/clipboard/local"
	"github.com/quantix-kvm/guest-agent/builtins/display/outputs"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The clipboard and the displays of the user at the console, by the agent as the service, which has a desktop of its own that
// nobody sees: what the ctl sets this process reads, which is on the desktop of the user, and the other way round.
func TestDesktopOfTheUserByTheService(t *testing.T) {
	onlyOne(t)
	const name = "org.quantix.agent.3"
	agentCommand(t, "service", "install", "--", "--device", `\\.\Global\`+name)
	p := NewPort(t, name)
	h := NewHost(t, p)
	agentCommand(t, "service", "start")
	t.Cleanup(func() { agentCommand(t, "service", "stop") })

	clipboard, err := local.Open(t.Context(), os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	defer clipboard.Close()
	ctl(t, h, "clipboard", "set", "grün, of the host")
	if got, _, err := clipboard.Get(t.Context(), local.Text); err != nil || string(got.Data) != "grün, of the host" {
		t.Errorf("the clipboard has %q, %v", got.Data, err)
	}
	if err := clipboard.Set(t.Context(), local.Content{Kind: local.HTML, Data: []byte("<b>of the guest</b>")}); err != nil {
		t.Fatal(err)
	}
	if out := ctl(t, h, "clipboard", "get"); strings.TrimSpace(out) != "of the guest" {
		t.Errorf("ctl clipboard get: %q", out)
	}
	if out := ctl(t, h, "clipboard", "get", "--type", "html"); strings.TrimSpace(out) != "<b>of the guest</b>" {
		t.Errorf("ctl clipboard get --type html: %q", out)
	}
	if out := ctl(t, h, "status"); !strings.Contains(out, "windows") {
		t.Error(out)
	}

	before := firstDisplay(t)
	other := ""
	for _, m := range before.Modes {
		if m.Width != before.Width && m.Width >= 640 {
			other = fmt.Sprintf("%dx%d", m.Width, m.Height)
		}
	}
	if other == "" {
		t.Fatalf("the display has one size alone: %v", before)
	}
	if out := ctl(t, h, "display", "list"); !strings.Contains(out, size(before)) || !strings.Contains(out, "DISPLAY1") {
		t.Errorf("%s is not in %s", size(before), out)
	}
	ctl(t, h, "display", "set", other)
	if now := shown(t); now != other {
		t.Errorf("it was set to %s, and is %s", other, now)
	}
	_, errs, status := Ctl(t, h, "display", "set", "1111x777")
	if status == 0 || !strings.Contains(errs, size(before)) {
		t.Errorf("a size that there is not: %d %s", status, errs)
	}
	// A script that fails leaves the display as it was before it.
	out, ok := runScript(t, h, roomScript(t, fmt.Sprintf(`display.set(%d, %d) error("enough")`, before.Width, before.Height)))
	if now := shown(t); ok || now != other || !strings.Contains(out, "enough") {
		t.Errorf("after a script that failed it is %s, and was %s: %s", now, other, out)
	}
	ctl(t, h, "display", "set", size(before))
	if now := shown(t); now != size(before) {
		t.Errorf("it was set back to %s, and is %s", size(before), now)
	}
}

// shown is the size of the first display. Under Wine, where a process that handles no messages is not told of a change, the
// X server is asked.
func shown(t *testing.T) string {
	t.Helper()
	if !isWine() {
		return size(firstDisplay(t))
	}
	file := fmt.Sprintf("quantix-shown-%d", os.Getpid())
	line := "xrandr >/tmp/" + file + ".new && mv /tmp/" + file + ".new /tmp/" + file
	path := filepath.Join(`Z:\tmp`, file)
	defer os.Remove(path)
	if out, err := exec.Command("start.exe", "/wait", "/unix", "/bin/sh", "-c", line).CombinedOutput(); err != nil {
		t.Fatalf("xrandr: %v %s", err, out)
	}
	waitFor(t, "xrandr", func() bool { _, err := os.Stat(path); return err == nil })
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`connected (?:primary )?(\d+x\d+)`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("not understood: %s", text)
	}
	return string(m[1])
}

func size(o *pb.DisplayOutput) string { return fmt.Sprintf("%dx%d", o.Width, o.Height) }

// firstDisplay is the first display as this process sees it.
func firstDisplay(t *testing.T) *pb.DisplayOutput {
	t.Helper()
	displays, err := outputs.Open(t.Context(), os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	defer displays.Close()
	list, err := displays.Outputs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list.Outputs {
		if o.Enabled && o.Primary {
			return o
		}
	}
	t.Fatalf("none of %v is the first one", list)
	return nil
}
