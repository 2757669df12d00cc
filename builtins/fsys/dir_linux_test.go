package fsys_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// manyNames gives one file n long names in a directory.
func manyNames(t *testing.T, dir string, n int) {
	t.Helper()
	for i := range n {
		name := fmt.Sprintf("%s/%s%06d", dir, strings.Repeat("n", 200), i)
		if i%30_000 == 0 { // as many names as any file system gives one file
			write(t, dir+"/first", "")
			must(t, os.Rename(dir+"/first", name))
			must(t, os.Link(name, dir+"/first"))
			continue
		}
		must(t, os.Link(dir+"/first", name))
	}
	must(t, os.Remove(dir+"/first"))
}

func openDir(t *testing.T, dir string) *fsys.Dir {
	t.Helper()
	d, err := at(t, host(t), dir).OpenDir()
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

func TestTheNamesOfADirectoryAreNotHeldTogether(t *testing.T) {
	const n, most = 20_000, 1 << 20 // bytes: all of the names have more than four times as many
	dir, err := os.MkdirTemp("/dev/shm", "fsys-test-")
	if err != nil {
		dir = scratch(t)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	manyNames(t, dir, n)
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	seen := map[[6]byte]bool{}
	for i := range n {
		seen[[6]byte([]byte(fmt.Sprintf("%06d", i)))] = false
	}
	d := openDir(t, dir)
	before, count := heap(), 0
	must(t, d.Each(func(name string) error {
		seen[[6]byte([]byte(name[200:]))] = true
		if count++; count%(n/4) == 0 {
			if rise := heap() - before; rise > most {
				t.Errorf("after %d names %d KiB are held", count, rise>>10)
			}
		}
		return os.Remove(dir + "/" + name)
	}))
	if count != n {
		t.Errorf("%d names, and there were %d", count, n)
	}
	for number, there := range seen {
		if !there {
			t.Fatalf("%s was left out", number[:])
		}
	}
	if left := listing(t, dir); len(left) > 0 {
		t.Errorf("%d names are left", len(left))
	}
}

func TestNamesAreBounded(t *testing.T) {
	dir := scratch(t)
	manyNames(t, dir, 600)
	d := openDir(t, dir)
	if names, err := d.Names(600); err != nil || len(names) != 600 {
		t.Errorf("%d names, %v", len(names), err)
	}
	if names, err := d.Names(599); !errors.Is(err, fault.ErrTooLarge) || len(names) > 0 {
		t.Errorf("one more than is allowed: %d names, %v", len(names), err)
	}
	enough := errors.New("enough")
	count := 0
	if err := d.Each(func(string) error {
		if count++; count == 300 {
			return enough
		}
		return nil
	}); err != enough || count != 300 {
		t.Errorf("%d, %v", count, err)
	}
	over, err := host(t).Overlay(scratch(t) + "/overlay")
	must(t, err)
	t.Cleanup(func() { over.Close() })
	pretended := at(t, over, dir+"/new")
	must(t, pretended.Mkdir(fsys.Attr{}))
	first, err := d.Names(600)
	must(t, err)
	must(t, at(t, over, dir+"/"+first[0]).Remove())
	inOverlay, err := at(t, over, dir).OpenDir()
	must(t, err)
	names, err := inOverlay.Names(600)
	if err != nil || len(names) != 600 || !slices.Contains(names, "new") || slices.Contains(names, first[0]) {
		t.Errorf("an overlay with one more and one less: %d, %v", len(names), err)
	}
	if _, err := inOverlay.Names(599); !errors.Is(err, fault.ErrTooLarge) {
		t.Errorf("an overlay: %v", err)
	}
}

// An entry in a directory that is held open is in that one, and held against what was checked at its path.
func TestAnEntryInAHeldDirectory(t *testing.T) {
	dir := scratch(t)
	must(t, errors.Join(os.Mkdir(dir+"/a", 0o755), os.Mkdir(dir+"/b", 0o755)))
	checked := host(t).NewCheckedPaths()
	_, err := checked.Look(dir+"/a/f", false)
	must(t, err)
	held := openDir(t, dir+"/a")
	must(t, errors.Join(os.Rename(dir+"/a", dir+"/c"), os.Rename(dir+"/b", dir+"/a")))
	r := host(t).WithChecked(checked)
	in, err := r.In(held, "f")
	must(t, err)
	defer in.Close()
	must(t, in.Mkdir(fsys.Attr{}))
	if _, err := os.Stat(dir + "/c/f"); err != nil {
		t.Error(err)
	}
	if _, err := r.In(openDir(t, dir+"/a"), "f"); !errors.Is(err, fault.ErrChanged) {
		t.Errorf("in another directory than was checked the error is %v", err)
	}
}

// What a dry run makes in a directory that is open is there for its later steps.
func TestAnOverlayKeepsWhatIsMadeInAnOpenDirectory(t *testing.T) {
	dir := scratch(t)
	must(t, os.Mkdir(dir+"/a", 0o755))
	over, err := host(t).Overlay(scratch(t) + "/overlay")
	must(t, err)
	defer over.Close()
	open, err := at(t, over, dir+"/a").OpenDir()
	must(t, err)
	defer open.Close()
	in, err := over.In(open, "made")
	must(t, err)
	defer in.Close()
	must(t, in.Mkdir(fsys.Attr{}))
	if is, err := at(t, over, dir+"/a/made").Stat(); err != nil || is.Kind != fsys.Directory {
		t.Errorf("%v, %v", is, err)
	}
}
