package netplan

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// fill mounts a small file system on a directory of the tree, with what was in that, and fills it.
func (tr *tree) fill(dir string) {
	tr.Helper()
	dir = tr.path(dir)
	kept := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		tr.Fatal(err)
	}
	for _, e := range entries {
		if kept[e.Name()], err = os.ReadFile(dir + "/" + e.Name()); err != nil {
			tr.Fatal(err)
		}
	}
	if err := unix.Mount("full", dir, "tmpfs", 0, "size=64k,mode=755"); err != nil {
		tr.Skipf("needs to mount a small file system: %v", err)
	}
	tr.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			tr.Error(err)
		}
	})
	for name, content := range kept {
		if err := os.WriteFile(dir+"/"+name, content, 0o600); err != nil {
			tr.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/filler", make([]byte, 128<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		tr.Fatal("it is not full:", err)
	}
}

// names are the files in a directory of the tree.
func (tr *tree) names(dir string) string {
	tr.Helper()
	entries, err := os.ReadDir(tr.path(dir))
	if err != nil {
		tr.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// On a disk that is full the file stays as it was, and nothing is left beside it.
func TestFullDisk(t *testing.T) {
	tr := newTree(t)
	tr.put("/etc/netplan/60-lan.yaml", fixed)
	tr.fill("/etc/netplan")
	changed := strings.Replace(fixed, "192.0.2.7", "192.0.2.8", 1)
	if _, err := tr.set("60-lan", changed); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "/etc/netplan/60-lan.yaml") {
		t.Error(err)
	}
	if have, _ := os.ReadFile(tr.path("/etc/netplan/60-lan.yaml")); string(have) != fixed {
		t.Errorf("the file is %q", have)
	}
	if got := tr.names("/etc/netplan"); got != "60-lan.yaml filler" {
		t.Error("there are", got)
	}
}

// Where nothing can be checked nothing is written, and where nothing can be installed what was there stays.
func TestFullRun(t *testing.T) {
	tr := newTree(t)
	tr.put("/etc/netplan/60-lan.yaml", fixed)
	made, err := tr.room.generate(t.Context(), []*document{{path: "/etc/netplan/60-lan.yaml", text: []byte(fixed)}})
	if err != nil {
		t.Fatal(err)
	}
	tr.fill("/run")
	changed := strings.Replace(fixed, "192.0.2.7", "192.0.2.8", 1)
	if _, err := tr.set("60-lan", changed); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "a directory to check the configuration in") {
		t.Error(err)
	}
	if have, _ := os.ReadFile(tr.path("/etc/netplan/60-lan.yaml")); string(have) != fixed {
		t.Errorf("the file is %q", have)
	}
	if err := tr.room.install(made); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	have, err := tr.room.current(nil)
	if err != nil || len(have) > 0 {
		t.Errorf("%q is installed, %v", sorted(have), err)
	}
	if got := tr.names("/run"); strings.Contains(got, "quantix") {
		t.Error("there are", got)
	}
}
