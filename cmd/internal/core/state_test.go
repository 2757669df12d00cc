package core

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// A state directory below a mount point of fstab on which nothing is mounted is not the state directory.
func TestUnmounted(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("fstab is of Linux")
	}
	fstab := "# /dev/vda9 /var ext4 defaults 0 2\nUUID=1 / ext4 defaults 0 1\nUUID=2 /va ext4 defaults 0 2\n" +
		"UUID=3 /var\\040x ext4 nofail 0 2\nUUID=4\t/var/lib\text4\tnofail,x 0 2\nUUID=5 /var/lib/quantix-kvm ext4 noauto 0 2\nUUID=6 none swap sw 0 0\n" +
		"#" + strings.Repeat("x", 1<<17) + "\nUUID=7 /opt ext4\n/dev/sr0 /media\n"
	for dir, want := range map[string]string{
		"/var/lib/quantix-kvm": "/var/lib", "/var/lib": "/var/lib", "/var x/state": "/var x", "/srv/state": "", "/va/x": "/va",
		"/opt/state": "/opt", "/media/state": "",
	} {
		if point := unmounted(fstab, dir, func(point string) bool { return false }); point != want {
			t.Errorf("%s waits for %q", dir, point)
		}
	}
	if point := unmounted(fstab, "/var/lib/quantix-kvm", func(point string) bool { return point == "/var/lib" }); point != "" {
		t.Error(point)
	}
}

// The key stays with its machine: a copy that got another ID makes its own, and a machine without one keeps what is there.
func TestTheKeyIsOfOneMachine(t *testing.T) {
	dir := t.TempDir()
	read := func(machine string) []byte {
		t.Helper()
		key, err := readKey(dir, machine)
		if err != nil || len(key) != keyLength {
			t.Fatalf("%x, %v", key, err)
		}
		return key
	}
	if err := os.WriteFile(filepath.Join(dir, "key.new"), make([]byte, 100), 0o600); err != nil { // of one that was killed
		t.Fatal(err)
	}
	first := read("one")
	if !bytes.Equal(read("one"), first) || !bytes.Equal(read(""), first) || !bytes.Equal(read("one"), first) {
		t.Error("a machine has not kept its key")
	}
	second := read("two")
	if bytes.Equal(second, first) || !bytes.Equal(read("two"), second) {
		t.Error("a copy has the key of its original, or does not keep its own")
	}
	if err := os.Remove(filepath.Join(dir, "key")); err != nil {
		t.Fatal(err)
	}
	image := read("")
	if !bytes.Equal(read(""), image) || bytes.Equal(read("one"), image) {
		t.Error("a machine has the key of its image, or the image has not kept it")
	}
	old := bytes.Repeat([]byte{7}, keyLength)
	if err := os.WriteFile(filepath.Join(dir, "key"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read("one"), old) || bytes.Equal(read("two"), old) {
		t.Error("a key without a machine has not become the key of the one that read it")
	}
	info, err := os.Stat(filepath.Join(dir, "key"))
	if err != nil || info.Mode().Perm() != 0o600 && runtime.GOOS != "windows" { // where the directory's rights count
		t.Errorf("%v, %v", info, err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Error(list, err)
	}
}
