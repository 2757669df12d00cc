package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// roomIn is a room for a directory with these files.
func roomIn(t testing.TB, files map[string]string) *Room {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return New(&guest.Guest{Files: root, Dir: dir})
}

func software(t testing.TB, r *Room, in *pb.ListInstalledSoftwareRequest) *pb.ListInstalledSoftwareResponse {
	t.Helper()
	out, err := r.software(t.Context(), &builtins.Call{}, in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func dpkg(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "Package: package-%05d\nStatus: install ok installed\nArchitecture: all\nVersion: 1.%d\nMaintainer: Some Maintainers <list@example.org>\nDescription: %s\n\n",
			i, i, strings.Repeat("x", 200))
	}
	return b.String() + "Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n"
}

// Only what is installed is listed, unless all is asked for; the total is that of all pages, which together are the list.
func TestStatesFilterAndPages(t *testing.T) {
	r := roomIn(t, map[string]string{"var/lib/dpkg/status": dpkg(250)})
	all := software(t, r, &pb.ListInstalledSoftwareRequest{})
	if len(all.Software) != 250 || all.TotalCount != 250 || all.NextOffset != 0 || !all.Success || len(all.Warnings) > 0 {
		t.Error(len(all.Software), all.TotalCount, all.NextOffset, all.Warnings)
	}
	if out := software(t, r, &pb.ListInstalledSoftwareRequest{AllStates: true, Filter: "GON"}); out.TotalCount != 1 || out.Software[0].State != "config-files" {
		t.Error(out)
	}
	if out := software(t, r, &pb.ListInstalledSoftwareRequest{Filter: "gone"}); out.TotalCount != 0 {
		t.Error(out)
	}
	if out := software(t, r, &pb.ListInstalledSoftwareRequest{Filter: "E-0001"}); out.TotalCount != 10 || len(out.Software) != 10 {
		t.Error(out.TotalCount)
	}
	var paged []*pb.InstalledSoftware
	for offset := uint32(0); ; {
		out := software(t, r, &pb.ListInstalledSoftwareRequest{MaxEntries: 100, Offset: offset})
		paged = append(paged, out.Software...)
		if out.TotalCount != 250 || len(out.Software) > 100 {
			t.Fatal(out.TotalCount, len(out.Software))
		}
		if offset = out.NextOffset; offset == 0 {
			break
		}
	}
	if !proto.Equal(&pb.ListInstalledSoftwareResponse{Software: paged}, &pb.ListInstalledSoftwareResponse{Software: all.Software}) {
		t.Error("the pages are not the list")
	}
	if out := software(t, r, &pb.ListInstalledSoftwareRequest{Offset: 1 << 31}); len(out.Software) != 0 || out.TotalCount != 250 || out.NextOffset != 0 {
		t.Error(out)
	}
}

// However many there are, a reply fits into a frame.
func TestManyFitIntoReplies(t *testing.T) {
	r := roomIn(t, map[string]string{"var/lib/dpkg/status": dpkg(60000)})
	count, pages := 0, 0
	for offset := uint32(0); ; pages++ {
		out := software(t, r, &pb.ListInstalledSoftwareRequest{Offset: offset})
		if count += len(out.Software); out.TotalCount != 60000 || proto.Size(out) > maxPage+1<<16 {
			t.Fatal(out.TotalCount, proto.Size(out))
		}
		if offset = out.NextOffset; offset == 0 {
			break
		}
	}
	if count != 60000 || pages == 0 {
		t.Error(count, pages)
	}
}

// Several databases are one list. One that is damaged is a warning, and an error where there is no other; none at all is an
// error.
func TestDatabases(t *testing.T) {
	const apk = "P:musl\nV:1\nA:x86_64\n\n"
	r := roomIn(t, map[string]string{"var/lib/dpkg/status": "damaged\n", "lib/apk/db/installed": apk})
	out := software(t, r, &pb.ListInstalledSoftwareRequest{})
	if out.TotalCount != 1 || out.Software[0].PackageType != "apk" || len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "/var/lib/dpkg/status") {
		t.Error(out)
	}
	for _, c := range []struct {
		in   *pb.ListInstalledSoftwareRequest
		want error
	}{
		{&pb.ListInstalledSoftwareRequest{PackageType: "deb"}, fault.ErrCorrupt},
		{&pb.ListInstalledSoftwareRequest{PackageType: "rpm"}, errors.ErrUnsupported},
		{&pb.ListInstalledSoftwareRequest{PackageType: "nope\n" + strings.Repeat("x", 4096)}, fs.ErrInvalid},
	} {
		_, err := r.software(t.Context(), &builtins.Call{}, c.in)
		if !errors.Is(err, c.want) || len(err.Error()) > 300 || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.20q: %v", c.in.PackageType, err)
		}
	}
	empty := roomIn(t, nil)
	if _, err := empty.software(t.Context(), &builtins.Call{}, &pb.ListInstalledSoftwareRequest{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	for _, name := range []string{"\n", "/", "-h", strings.Repeat("x", 4096), "no-such-package"} {
		if out := software(t, r, &pb.ListInstalledSoftwareRequest{Filter: name}); out.TotalCount != 0 {
			t.Errorf("%.10q: %v", name, out)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.software(ctx, &builtins.Call{}, &pb.ListInstalledSoftwareRequest{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// What is announced is what can be done.
func TestCapabilities(t *testing.T) {
	for _, c := range []struct {
		room               *Room
		hardware, software string
	}{
		{roomIn(t, nil), "", ""},
		{roomIn(t, map[string]string{"lib/apk/db/installed": "P:a\nV:1\n"}), "", "software_list"},
		{New(&guest.Guest{Live: true}), "hardware_info", ""},
	} {
		ops := c.room.Room().Ops
		if ops[0].Capability != c.hardware || ops[1].Capability != c.software {
			t.Errorf("%q %q", ops[0].Capability, ops[1].Capability)
		}
	}
	if _, err := roomIn(t, nil).hardware(t.Context(), nil, &pb.GetHardwareInfoRequest{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// On this machine: what dpkg-query counts as installed.
func TestThisMachine(t *testing.T) {
	out, err := exec.Command("dpkg-query", "-W", "-f", `${db:Status-Status}\n`).Output()
	if err != nil {
		t.Skip("needs a Debian machine: ", err)
	}
	root, err := fsys.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	got := software(t, New(&guest.Guest{Files: root, Live: true}), &pb.ListInstalledSoftwareRequest{PackageType: "deb"})
	want := 0
	for _, state := range strings.Fields(string(out)) {
		if state == "installed" {
			want++
		}
	}
	if int(got.TotalCount) != want {
		t.Errorf("%d packages, want %d", got.TotalCount, want)
	}
}
