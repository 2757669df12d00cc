package inventory

import (
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/windows/registry"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func newRoom(t *testing.T) *Room {
	t.Helper()
	root, err := fsys.Open("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return New(&guest.Guest{Files: root, Live: true})
}

// The hardware that is told fits with what the Go library and the kernel tell.
func TestHardware(t *testing.T) {
	out, err := newRoom(t).hardware(t.Context(), &builtins.Call{}, &pb.GetHardwareInfoRequest{
		IncludeCpuDetails: true, IncludeDiskDetails: true, IncludeNetworkDetails: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	h := out.Hardware
	if c := h.Cpu; c.Model == "" || c.Vendor == "" || int(c.Threads) != runtime.NumCPU() || c.Cores == 0 ||
		c.Cores > c.Threads || c.Sockets == 0 {
		t.Error(c)
	}
	if h.Memory.TotalBytes == 0 || h.Memory.AvailableBytes > h.Memory.TotalBytes {
		t.Error(h.Memory)
	}
	if o := h.Os; !strings.Contains(o.Name, "Windows") || o.Build == "" || o.Hostname == "" || o.LastBoot == nil {
		t.Error(o)
	}
	if h.Bios.GetSystemUuid() != facts.ProductUUID() {
		t.Error(h.Bios, facts.ProductUUID())
	}
	for _, a := range h.NetworkAdapters {
		if a.Name == "" || a.AdapterType == "" || a.AdapterType == "loopback" {
			t.Error(a)
		}
	}
	for _, d := range h.Disks {
		if !strings.HasPrefix(d.Device, `\\.\`) || d.SizeBytes == 0 {
			t.Error(d)
		}
	}
}

// program writes what an installer leaves of a program, and removes it at the end of the test.
func program(t *testing.T, root registry.Key, path string, view uint32, id string, texts map[string]string,
	numbers map[string]uint32) {
	t.Helper()
	path += `\` + id
	key, _, err := registry.CreateKey(root, path, registry.ALL_ACCESS|view)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	t.Cleanup(func() {
		parent, err := registry.OpenKey(root, path[:strings.LastIndexByte(path, '\\')], registry.ALL_ACCESS|view)
		if err != nil {
			t.Error(err)
			return
		}
		defer parent.Close()
		if err := registry.DeleteKey(parent, id); err != nil {
			t.Error(err)
		}
	})
	for name, value := range texts {
		if err := key.SetStringValue(name, value); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range numbers {
		if err := key.SetDWordValue(name, value); err != nil {
			t.Fatal(err)
		}
	}
}

// Programs of 64 and 32 bits and of a user are listed with what their installers left, and nothing else is.
func TestSoftware(t *testing.T) {
	const uninstall = `Software\Microsoft\Windows\CurrentVersion\Uninstall`
	program(t, registry.LOCAL_MACHINE, uninstall, registry.WOW64_64KEY, "quantix-test-64", map[string]string{
		"DisplayName": "Quantix Test ü", "DisplayVersion": "1.2", "Publisher": "Maker", "InstallDate": "20260102",
		"Comments": "for a test",
	}, map[string]uint32{"EstimatedSize": 3, "WindowsInstaller": 1})
	program(t, registry.LOCAL_MACHINE, uninstall, registry.WOW64_32KEY, "quantix-test-32",
		map[string]string{"DisplayName": "Quantix Test 32"}, nil)
	program(t, registry.CURRENT_USER, uninstall, registry.WOW64_64KEY, "quantix-test-user",
		map[string]string{"DisplayName": "Quantix Test of a user"}, nil)
	program(t, registry.LOCAL_MACHINE, uninstall, registry.WOW64_64KEY, "quantix-test-part",
		map[string]string{"DisplayName": "Quantix Test part"}, map[string]uint32{"SystemComponent": 1})
	program(t, registry.LOCAL_MACHINE, uninstall, registry.WOW64_64KEY, "quantix-test-update",
		map[string]string{"DisplayName": "Quantix Test update", "ParentKeyName": "x"}, nil)

	list := func(kind string) (found []*pb.InstalledSoftware) {
		t.Helper()
		out, err := newRoom(t).software(t.Context(), &builtins.Call{}, &pb.ListInstalledSoftwareRequest{Filter: "quantix test",
			PackageType: kind})
		if err != nil || len(out.Warnings) > 0 {
			t.Fatal(out, err)
		}
		return out.Software
	}
	all := list("")
	var names []string
	for _, p := range all {
		names = append(names, p.Name+" "+p.PackageType+" "+p.Architecture)
	}
	if want := []string{"Quantix Test 32 exe x86", "Quantix Test of a user exe ",
		"Quantix Test ü msi x86_64"}; !slices.Equal(names, want) {
		t.Fatalf("%q, want %q", names, want)
	}
	if p := all[2]; p.Version != "1.2" || p.Publisher != "Maker" || p.SizeBytes != 3<<10 || p.Summary != "for a test" ||
		p.InstallDate.AsTime().Format("2006-01-02") != "2026-01-02" || p.State != "installed" {
		t.Error(p)
	}
	if list := list("msi"); len(list) != 1 || list[0].PackageType != "msi" {
		t.Error(list)
	}
}

// A list of the topology is read up to where it ends.
func TestTopology(t *testing.T) {
	entry := func(relation byte, size int, fill func([]byte)) []byte {
		e := make([]byte, size)
		e[0], e[4] = relation, byte(size)
		if fill != nil {
			fill(e[8:])
		}
		return e
	}
	core := func(e []byte) { e[22], e[24] = 1, 0b11 }
	list := slices.Concat(entry(relationPackage, 48, nil), entry(relationCore, 48, core), entry(relationCore, 48, core),
		entry(relationCache, 56, func(e []byte) { e[0], e[6] = 3, 16 }))
	got := parseTopology(list)
	if want := (topology{sockets: 1, cores: 2, threads: 4, caches: [4]uint64{3: 16 << 16}}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for n := range list {
		parseTopology(list[:n])
	}
}
