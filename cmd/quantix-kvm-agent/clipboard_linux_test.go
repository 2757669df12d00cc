package main

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	desktopUser = 12345 // of whom there is no account
	isolatedEnv = "QUANTIX_ISOLATED_DESKTOP"
)

// isolatedDesktop runs the test again where it sees no other desktop of this machine: with processes and X sockets of its own.
// There the environment has the programs that were built before. False: that was it.
func isolatedDesktop(t *testing.T) bool {
	t.Helper()
	if os.Getenv(isolatedEnv) != "" {
		privateTmp(t)
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, for namespaces and to act as another user")
	}
	for _, program := range []string{"Xvfb", "xclip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s: apt-get install --no-install-recommends xvfb xclip", program)
		}
	}
	agent, err := agenttest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	ctl, err := ctltest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), isolatedEnv+"="+agent+":"+ctl, "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	return false
}

// privateTmp hides /tmp, where X servers have their sockets and locks, and keeps the programs.
func privateTmp(t *testing.T) {
	t.Helper()
	var programs [][]byte
	for path := range strings.SplitSeq(os.Getenv(isolatedEnv), ":") {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		programs = append(programs, content)
	}
	if err := unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", "/tmp")
	agent, ctl := builtPrograms()
	err := errors.Join(os.Mkdir("/tmp/.X11-unix", 0o700), os.Chmod("/tmp/.X11-unix", 0o777|os.ModeSticky),
		os.WriteFile(agent, programs[0], 0o755), os.WriteFile(ctl, programs[1], 0o755))
	if err != nil {
		t.Fatal(err)
	}
}

// builtPrograms returns where privateTmp has put the programs.
func builtPrograms() (agent, ctl string) { return "/tmp/agent", "/tmp/ctl" }

// xDesktop is an X server and its user.
type xDesktop struct {
	t       *testing.T
	uid     uint32
	display string
}

// newXDesktop starts an X server of a user, and a program by which the session is found.
func newXDesktop(t *testing.T, uid uint32, number int) *xDesktop {
	t.Helper()
	d := &xDesktop{t, uid, fmt.Sprintf(":%d", number)}
	for _, argv := range [][]string{{"Xvfb", d.display, "-screen", "0", "640x480x24", "-nolisten", "tcp"}, {"sleep", "1000"}} {
		cmd, said := d.command(argv...), &bytes.Buffer{}
		cmd.Stderr = said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
			if t.Failed() {
				t.Logf("%q: %s", argv, said)
			}
		})
	}
	path := fmt.Sprintf("/tmp/.X11-unix/X%d", number)
	within(t, func() bool { _, err := os.Stat(path); return err == nil })
	return d
}

func (d *xDesktop) command(argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "DISPLAY=" + d.display, "HOME=/"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if d.uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: d.uid, Gid: d.uid}
	}
	return cmd
}

// copy has a program of the desktop set the clipboard.
func (d *xDesktop) copy(mime string, data []byte) {
	d.t.Helper()
	cmd := d.command("xclip", "-quiet", "-selection", "clipboard", "-t", mime, "-i") // it would set it twice in the background
	cmd.Stdin = bytes.NewReader(data)
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go cmd.Wait()
	d.t.Cleanup(func() { cmd.Process.Kill() })
}

func (d *xDesktop) paste(mime string) []byte {
	d.t.Helper()
	out, err := d.command("xclip", "-selection", "clipboard", "-t", mime, "-o").Output()
	if err != nil {
		d.t.Fatalf("xclip -o: %v", err)
	}
	return out
}

func within(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen")
		}
	}
}

// randomPNG is a picture that no compression makes smaller.
func randomPNG(t *testing.T, width, height int) []byte {
	t.Helper()
	img := image.NewNRGBA(image.Rect(0, 0, width, height))
	r := rand.New(rand.NewPCG(1, 2))
	for i := range img.Pix {
		img.Pix[i] = byte(r.Uint32()) | byte(i%4/3*255)
	}
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.NoCompression}).Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const (
	typeText  = pb.ClipboardType_CLIPBOARD_TYPE_TEXT
	typeHTML  = pb.ClipboardType_CLIPBOARD_TYPE_HTML
	typeImage = pb.ClipboardType_CLIPBOARD_TYPE_IMAGE
	typeFiles = pb.ClipboardType_CLIPBOARD_TYPE_FILES
)

func TestClipboardOfTheDesktop(t *testing.T) {
	if !isolatedDesktop(t) {
		return
	}
	agent, _ := builtPrograms()
	a := agenttest.Start(t, agenttest.Options{Binary: agent})
	c := a.Client(t, client.Options{})
	ctx := ctxFor(t, 5*time.Minute)

	// Without a desktop that is said, and the capability is not announced.
	_, err := c.Clipboard(ctx, &pb.ClipboardGetRequest{})
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "no graphical session") {
		t.Errorf("no desktop: %v", err)
	}
	announced := func() bool {
		can, err := client.Call[*pb.GetCapabilitiesResponse](ctx, c, &pb.GetCapabilitiesRequest{})
		return err == nil && slices.Contains(can.Capabilities, "clipboard") && slices.Contains(can.Capabilities, "clipboard_watch")
	}
	if announced() {
		t.Error("the clipboard of no desktop is announced")
	}
	d := newXDesktop(t, desktopUser, 7)
	within(t, announced)

	_, err = c.Clipboard(ctx, &pb.ClipboardGetRequest{})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "empty") {
		t.Errorf("an empty clipboard: %v", err)
	}
	picture := randomPNG(t, 30, 20)
	for _, x := range []struct {
		kind pb.ClipboardType
		mime string
		data []byte
	}{
		{typeText, "UTF8_STRING", []byte("J\u00e9r\u00f4me\n\u4e2d")}, {typeHTML, "text/html", []byte("<b>loud</b>")},
		{typeImage, "image/png", picture}, {typeFiles, "text/uri-list", []byte("file:///a\r\n")},
		{typeText, "UTF8_STRING", bytes.Repeat([]byte("0123456789abcdef"), 5<<20/16)},
	} {
		if err := c.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Type: x.kind, Data: x.data}); err != nil {
			t.Fatal(err)
		}
		if got := d.paste(x.mime); !bytes.Equal(got, x.data) {
			t.Errorf("%v in the guest: %d bytes, want %d", x.kind, len(got), len(x.data))
		}
		if err := c.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Data: []byte("something else")}); err != nil {
			t.Fatal(err)
		}
		d.copy(x.mime, x.data)
		within(t, func() bool {
			got, err := c.Clipboard(ctx, &pb.ClipboardGetRequest{PreferredType: x.kind, Exact: true})
			return err == nil && bytes.Equal(got.Data, x.data) && got.Type == x.kind && slices.Equal(got.Offered, []pb.ClipboardType{x.kind})
		})
	}
	// What the contract says of a type that is not there, and what it cannot say.
	d.copy("image/png", picture)
	within(t, func() bool {
		got, err := c.Clipboard(ctx, &pb.ClipboardGetRequest{})
		return err == nil && got.Type == typeImage && got.MimeType == "image/png" && bytes.Equal(got.Data, picture)
	})
	if _, err := c.Clipboard(ctx, &pb.ClipboardGetRequest{Exact: true}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "but png") {
		t.Errorf("text of an image: %v", err)
	}
	if _, err := c.Clipboard(ctx, &pb.ClipboardGetRequest{PreferredType: 9}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("an unknown type: %v", err)
	}
	for name, x := range map[string]struct {
		request *pb.ClipboardUpdateRequest
		code    string
	}{
		"a PNG whose header lies":   {&pb.ClipboardUpdateRequest{Type: typeImage, Data: lyingHeader()}, "too_large"},
		"a JPEG":                    {&pb.ClipboardUpdateRequest{Type: typeImage, Data: []byte("\xff\xd8\xff\xe0")}, "unsupported"},
		"text that is not UTF-8":    {&pb.ClipboardUpdateRequest{Data: []byte("\xff\xfe")}, "invalid"},
		"HTML beyond the limit":     {&pb.ClipboardUpdateRequest{Type: typeHTML, Data: make([]byte, 15<<20+1)}, "too_large"},
		"files that are no URIs":    {&pb.ClipboardUpdateRequest{Type: typeFiles, Data: []byte("/etc/passwd")}, "invalid"},
		"a type that there is none": {&pb.ClipboardUpdateRequest{Type: 7}, "unsupported"},
	} {
		if err := c.SetClipboard(ctx, x.request); fault.Code(err) != x.code {
			t.Errorf("%s: %v, want %s", name, err, x.code)
		}
	}
	if got := d.paste("image/png"); !bytes.Equal(got, picture) {
		t.Error("what was refused has changed the clipboard")
	}

	// It stays when the request is over, and the helper is back after its death.
	if err := c.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Data: []byte("stays")}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Second)
	if got := string(d.paste("UTF8_STRING")); got != "stays" {
		t.Errorf("after 10 s it is %q", got)
	}
	status := func() *pb.DesktopStatus {
		s, err := client.Call[*pb.GetStatusResponse](ctx, c, &pb.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return s.Desktop
	}
	before := status()
	if before.Type != "x11" || before.User != fmt.Sprint(desktopUser) || before.Display != ":7" || before.HelperPid == 0 {
		t.Errorf("the status: %v", before)
	}
	killed := time.Now()
	unix.Kill(int(before.HelperPid), unix.SIGKILL)
	within(t, func() bool { now := status(); return now.HelperPid != 0 && now.HelperPid != before.HelperPid })
	t.Logf("the helper was back after %v", time.Since(killed).Round(time.Millisecond))
	a.AwaitLog(t, "the helper in the x11 session of 12345 ended", 1)
	if err := c.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Data: []byte("again")}); err != nil || string(d.paste("UTF8_STRING")) != "again" {
		t.Errorf("after the death of the helper: %v", err)
	}
}

// lyingHeader is a PNG of 100 bytes that says it has 65535x65535 pixels.
func lyingHeader() []byte {
	return append([]byte("\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR\x00\x00\xff\xff\x00\x00\xff\xff\x08\x06\x00\x00\x00"), make([]byte, 71)...)
}

// told waits for a change that a host is told of.
func told(t *testing.T, changes <-chan *pb.ClipboardChangedEvent) *pb.ClipboardChangedEvent {
	t.Helper()
	select {
	case change := <-changes:
		return change
	case <-time.After(20 * time.Second):
		t.Fatal("no change was told")
		return nil
	}
}

// changesOf returns options of a client, and the changes that it is told of.
func changesOf() (client.Options, chan *pb.ClipboardChangedEvent) {
	changes := make(chan *pb.ClipboardChangedEvent, 2000)
	return client.Options{Event: func(_ string, event proto.Message) {
		if change, ok := event.(*pb.ClipboardChangedEvent); ok {
			changes <- change
		}
	}}, changes
}

func TestChangesOfTheClipboardAreTold(t *testing.T) {
	if !isolatedDesktop(t) {
		return
	}
	agent, _ := builtPrograms()
	d := newXDesktop(t, desktopUser, 7)
	for _, unasked := range []bool{false, true} {
		t.Run(fmt.Sprintf("unasked %v", unasked), func(t *testing.T) {
			a := agenttest.Start(t, agenttest.Options{Binary: agent, Config: fmt.Sprintf("clipboard:\n  changes: %v\n  max_event_bytes: 100000\n", unasked)})
			ctx := ctxFor(t, 5*time.Minute)
			options, changes := changesOf()
			c := a.Client(t, options)
			if _, _, err := c.Ping(ctx); err != nil {
				t.Fatal(err)
			}
			if !unasked {
				if err := c.WatchClipboard(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Data: []byte("of the host")}); err != nil {
				t.Fatal(err)
			}
			// The helper is told to watch when it starts, and that takes a moment: until a change is told.
			within(t, func() bool {
				d.copy("UTF8_STRING", []byte("first"))
				select {
				case change := <-changes:
					return string(change.Data) == "first"
				case <-time.After(500 * time.Millisecond):
					return false
				}
			})
			time.Sleep(100 * time.Millisecond)
			for len(changes) > 0 {
				<-changes
			}
			var worst time.Duration
			for i := range 20 {
				want := fmt.Sprintf("change %d", i)
				begin := time.Now()
				d.copy("UTF8_STRING", []byte(want))
				change := told(t, changes)
				worst = max(worst, time.Since(begin))
				if string(change.Data) != want || change.Type != typeText || !slices.Equal(change.Offered, []pb.ClipboardType{typeText}) {
					t.Errorf("told: %v", change)
				}
				if err := c.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Data: []byte("of the host")}); err != nil { // which is not told
					t.Fatal(err)
				}
			}
			t.Logf("from the start of xclip to the event on the host: at most %v", worst.Round(time.Millisecond))
			d.copy("text/html", bytes.Repeat([]byte("x"), 200_000))
			change := told(t, changes)
			if change.Data != nil || change.Type != typeHTML || !strings.Contains(change.Reason, "larger than 100000 bytes") {
				t.Errorf("a change that is too large: %d bytes, %v, %q", len(change.Data), change.Type, change.Reason)
			}
			a.AwaitLog(t, "clipboard_changed without content", 1)
			if len(changes) > 0 {
				t.Errorf("%d more changes were told", len(changes))
			}
		})
	}
}

func TestClipboardIsTurnedOff(t *testing.T) {
	if !isolatedDesktop(t) {
		return
	}
	agent, _ := builtPrograms()
	newXDesktop(t, desktopUser, 7)
	ctx := ctxFor(t, 5*time.Minute)
	for _, x := range []struct{ config, get, set, watch string }{
		{"clipboard:\n  from_guest: false\n", "refused", "", "refused"},
		{"clipboard:\n  to_guest: false\n", "not_found", "refused", ""},
		{"clipboard:\n  to_guest: false\n  from_guest: false\n  changes: true\n", "refused", "refused", "refused"},
		{"security:\n  deny_operations: [clipboard.*, clipboard_get, clipboard_update, clipboard_watch]\n", "refused", "refused", "refused"},
	} {
		a := agenttest.Start(t, agenttest.Options{Binary: agent, Config: x.config})
		c := a.Client(t, client.Options{})
		_, err := c.Clipboard(ctx, &pb.ClipboardGetRequest{})
		if fault.Code(err) != x.get {
			t.Errorf("%sget: %v", x.config, err)
		}
		if err := c.WatchClipboard(ctx); fault.Code(err) != x.watch {
			t.Errorf("%swatch: %v", x.config, err)
		}
		if err := c.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Data: []byte("x")}); fault.Code(err) != x.set {
			t.Errorf("%sset: %v", x.config, err)
		}
		a.Kill()
	}
}

func TestScriptsUseTheClipboard(t *testing.T) {
	if !isolatedDesktop(t) {
		return
	}
	agent, _ := builtPrograms()
	d := newXDesktop(t, desktopUser, 7)
	a := agenttest.Start(t, agenttest.Options{Binary: agent})
	c := a.Client(t, client.Options{})
	run := func(source string, dry bool) *pb.RunScriptResponse {
		t.Helper()
		reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, time.Minute), c, &pb.RunScriptRequest{Source: []byte(source), DryRun: dry})
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	const source = `local changed = clipboard.set("<b>x</b>", "html", {text = "plain"})
return {changed = changed, html = clipboard.get("html"), text = clipboard.get()}`
	for i, want := range []string{"true", "false"} { // nothing changes the second time
		reply := run(source, false)
		if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
			t.Fatalf("run %d: %v", i, reply)
		}
		result := reply.Result.GetStructValue().AsMap()
		if fmt.Sprint(result["changed"]) != want || result["html"] != "<b>x</b>" || result["text"] != "plain" {
			t.Errorf("run %d: %v", i, result)
		}
	}
	if got := string(d.paste("UTF8_STRING")); got != "plain" {
		t.Errorf("in the guest: %q", got)
	}
	reply := run(`clipboard.set("y")`, true)
	if len(reply.Changes) != 1 || reply.Changes[0].State != pb.ChangeState_CHANGE_STATE_UNKNOWN || string(d.paste("UTF8_STRING")) != "plain" {
		t.Errorf("a dry run: %v", reply)
	}
	reply = run(`clipboard.set("z") error("on purpose")`, false)
	if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_PARTIAL || len(reply.NotUndone) != 1 || reply.NotUndone[0].Op != "clipboard.set" {
		t.Errorf("a script that fails: %v", reply)
	}
	for source, kind := range map[string]string{
		`clipboard.get("png")`: "not_found", `clipboard.get("video")`: "params", `clipboard.set("\255")`: "params",
		`clipboard.set("x", "text", {text = "y"})`: "params",
	} {
		reply := run("local ok, e = pcall(function() "+source+" end) return {ok, e.code}", false)
		t.Log(source, kind, reply.Result, reply.Error)
	}
}

func TestCtlJoinsTwoClipboards(t *testing.T) {
	if !isolatedDesktop(t) {
		return
	}
	agent, ctl := builtPrograms()
	guest, host := newXDesktop(t, desktopUser, 7), newXDesktop(t, 0, 8)
	a := agenttest.Start(t, agenttest.Options{Binary: agent})
	command := func(args ...string) *exec.Cmd {
		cmd := host.command(append([]string{ctl, "--socket", a.Socket}, args...)...)
		cmd.Env = append(cmd.Env, "HOME="+t.TempDir())
		return cmd
	}
	picture := randomPNG(t, 30, 20)
	file := filepath.Join(t.TempDir(), "a.png")
	if err := os.WriteFile(file, picture, 0o644); err != nil {
		t.Fatal(err)
	}
	set := command("clipboard", "set", "--type", "png")
	set.Stdin = bytes.NewReader(picture)
	if out, err := set.CombinedOutput(); err != nil {
		t.Fatalf("set: %v %s", err, out)
	}
	got, err := command("clipboard", "get", "--type", "png").Output()
	if err != nil || !bytes.Equal(got, picture) {
		t.Errorf("get: %v, %d bytes", err, len(got))
	}
	sync := command("clipboard", "watch", "--sync")
	var output bytes.Buffer
	sync.Stdout, sync.Stderr = &output, &output
	if err := sync.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { sync.Process.Kill(); sync.Wait(); t.Logf("%s", output.Bytes()) }()
	arrives := func(from, to *xDesktop, mime string, data []byte) {
		t.Helper()
		within(t, func() bool {
			from.copy(mime, data)
			for range 10 {
				time.Sleep(50 * time.Millisecond)
				out, err := to.command("xclip", "-selection", "clipboard", "-t", mime, "-o").Output()
				if err == nil && bytes.Equal(out, data) {
					return true
				}
			}
			return false
		})
	}
	arrives(guest, host, "UTF8_STRING", []byte("from the guest"))
	arrives(host, guest, "UTF8_STRING", []byte("from the host"))
	arrives(guest, host, "image/png", picture)
	arrives(host, guest, "text/html", []byte("<p>both</p>"))
	arrives(guest, host, "text/html", bytes.Repeat([]byte("<p>large</p>"), 200_000)) // more than an event has
}

// A PNG of 10 MiB takes about as long as a file of that size: the times are logged.
func TestLargeImageBesideAPush(t *testing.T) {
	if !isolatedDesktop(t) {
		return
	}
	agent, _ := builtPrograms()
	d := newXDesktop(t, desktopUser, 7)
	a := agenttest.Start(t, agenttest.Options{Binary: agent})
	c := a.Client(t, client.Options{})
	ctx := ctxFor(t, 5*time.Minute)
	picture := randomPNG(t, 1870, 1870) // 10 MiB
	file := filepath.Join(t.TempDir(), "file")
	read := func() {
		reply, err := c.Clipboard(ctx, &pb.ClipboardGetRequest{PreferredType: typeImage})
		if err != nil || !bytes.Equal(reply.Data, picture) {
			t.Fatalf("get: %v", err)
		}
	}
	steps := []struct {
		name string
		f    func()
	}{
		{"pushed as a file", func() {
			if _, err := c.Push(ctx, file, bytes.NewReader(picture), client.PushOptions{}); err != nil {
				t.Fatal(err)
			}
		}},
		{"set", func() {
			if err := c.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Type: typeImage, Data: picture}); err != nil {
				t.Fatal(err)
			}
		}},
		{"read back", read},
		{"pasted by xclip", func() {
			if !bytes.Equal(d.paste("image/png"), picture) {
				t.Error("it is not what was set")
			}
		}},
	}
	took := map[string][]time.Duration{}
	measure := func(name string, f func()) {
		begin := time.Now()
		f()
		took[name] = append(took[name], time.Since(begin))
	}
	for range 5 {
		for _, step := range steps {
			measure(step.name, step.f)
		}
	}
	if err := c.SetClipboard(ctx, &pb.ClipboardUpdateRequest{Data: []byte("something else")}); err != nil {
		t.Fatal(err)
	}
	d.copy("image/png", picture)
	within(t, func() bool {
		got, err := c.Clipboard(ctx, &pb.ClipboardGetRequest{})
		return err == nil && got.Type == typeImage
	})
	for range 5 {
		measure("read from xclip", read)
		measure("read from xclip by xclip", func() { d.paste("image/png") })
	}
	t.Logf("%d bytes, the median of 5:", len(picture))
	for name, all := range took {
		slices.Sort(all)
		t.Logf("%s: %v", name, all[len(all)/2].Round(100*time.Microsecond))
	}
}
