package facts

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What is told of this machine is not nothing, and fits together.
func TestFactsOfWindows(t *testing.T) {
	ctx := t.Context()
	if r := ReadRelease(ctx, "/"); r.ID != "windows" || !strings.Contains(r.Name, "Windows") || r.Version == "" {
		t.Errorf("%+v", r)
	}
	kernel, machine := Kernel()
	if kernel == "" || machine != "x86_64" && machine != "aarch64" {
		t.Error(kernel, machine)
	}
	if name, err := os.Hostname(); err != nil || Hostname("/") != name || name == "" {
		t.Error(Hostname("/"), name, err)
	}
	if m, err := ReadMemory(ctx); err != nil || m.Total == 0 || m.Available > m.Total {
		t.Error(m, err)
	}
	if up, err := Uptime(ctx); err != nil || up <= 0 || up > 100*365*24*time.Hour {
		t.Error(up, err)
	}
	if n, err := Processes(ctx); err != nil || n < 2 {
		t.Error(n, err)
	}
}

// One boot has one identity, whoever asks.
func TestBootID(t *testing.T) {
	first := BootID()
	if first == "" {
		t.Fatal("it cannot be told")
	}
	if second := BootID(); second != first {
		t.Error(first, second)
	}
}

// The drive of the temporary directory is among the disks, with its size.
func TestDisks(t *testing.T) {
	letter := strings.ToUpper(filepath.VolumeName(t.TempDir()))
	list, err := (&Disks{}).Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		if strings.HasPrefix(strings.ToUpper(d.Mount), letter) {
			if d.Total == 0 || d.Available > d.Total || d.Used > d.Total {
				t.Errorf("%+v", d)
			}
			return
		}
	}
	t.Errorf("%s is not in %+v", letter, list)
}

// Links have what the Go library tells of them, and kinds.
func TestLinks(t *testing.T) {
	links, err := Links()
	if err != nil {
		t.Fatal(err)
	}
	want, err := net.Interfaces()
	if err != nil || len(links) != len(want) || len(links) == 0 {
		t.Fatal(len(links), len(want), err)
	}
	for i, l := range links {
		if l.Name != want[i].Name || l.Index != want[i].Index || l.Kind == "" || l.Loopback != (l.Kind == "loopback") {
			t.Errorf("%+v", l)
		}
	}
}

func TestRoutes(t *testing.T) {
	routes, err := Routes()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if !r.Destination.IsValid() || r.Link == 0 || r.Scope == "" || r.Destination.Addr().IsMulticast() {
			t.Errorf("%+v", r)
		}
	}
}

func TestDNS(t *testing.T) {
	servers, _, err := DNS()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		if _, err := netip.ParseAddr(s); err != nil {
			t.Error(s, err)
		}
	}
}

// A table of partitions is read up to where it ends.
func TestLayout(t *testing.T) {
	layout := make([]byte, 48+2*144)
	layout[0], layout[4] = 1, 3 // GPT, and more entries than there are
	for i, number := range []byte{1, 0} {
		entry := layout[48+i*144:]
		entry[10], entry[18], entry[24] = 16, 32, number // of 65,536 bytes
	}
	got := parseLayout(layout)
	if len(got) != 1 || got[0] != (DrivePartition{Number: 1, Offset: 16 << 16, Size: 32 << 16}) {
		t.Errorf("%+v", got)
	}
	for n := range layout {
		parseLayout(layout[:n])
	}
}
