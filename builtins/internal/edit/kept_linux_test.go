package edit_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A file is not written whose before-image is of another one: a directory on the way was exchanged between the two looks.
func TestBeforeImageIsOfWhatIsWritten(t *testing.T) {
	dir := t.TempDir()
	a, b := dir+"/home/a", dir+"/home/b"
	err := errors.Join(os.MkdirAll(a, 0o755), os.MkdirAll(b, 0o700), os.WriteFile(a+"/f", []byte("a's"), 0o644),
		os.WriteFile(b+"/f", []byte("b's secret"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	root, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	j, err := journal.Open(journal.Config{
		Dir: t.TempDir() + "/tx", Root: root, Version: "test",
		MachineID: func() string { return "machine" }, BootID: func() string { return "boot" },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	tx, err := j.Begin(t.Context(), journal.Header{MessageID: "m", Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	exchange := func() error { return unix.Renameat2(-1, a, -1, b, unix.RENAME_EXCHANGE) }
	e := &edit.Editor{Guest: &guest.Guest{Files: root, Dir: dir}}
	_, err = e.Put(t.Context(), &builtins.Call{Tx: tx}, edit.File{
		Op: "test", Path: "/home/a/f", Content: []byte("new"),
		Same: func([]byte) bool { err = exchange(); return false }, // it was looked at, and not kept yet
	})
	if !errors.Is(err, fault.ErrChanged) {
		t.Error(err)
	}
	if err := exchange(); err != nil {
		t.Fatal(err)
	}
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Errorf("%+v", report)
	}
	for path, want := range map[string]string{a + "/f": "a's", b + "/f": "b's secret"} {
		if got, err := os.ReadFile(path); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
}
