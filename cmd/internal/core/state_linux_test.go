package core_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/quantix-kvm/guest-agent/cmd/internal/core"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Who builds an image on a host must not have the image lead the agent to the host's own files.
func TestTheStateOfAnImageStaysInTheImage(t *testing.T) {
	const dir = "/var/lib/quantix-kvm"
	for name, link := range map[string][2]string{
		"no link":                    {"", ""},
		"the directory":              {"/host", "var/lib/quantix-kvm"},
		"a directory above":          {"/host", "var/lib"},
		"a directory above, upwards": {"../../../../../host", "var"},
	} {
		root := t.TempDir()
		if link[0] != "" {
			if err := os.Mkdir(root+"/host", 0o755); err != nil {
				t.Fatal(err)
			}
			place := filepath.Join(root, link[1])
			if err := errors.Join(os.MkdirAll(filepath.Dir(place), 0o755), os.Symlink(link[0], place)); err != nil {
				t.Fatal(err)
			}
		}
		place, err := core.StateBelow(root, dir)
		if below, e := filepath.Rel(root, place); err != nil || e != nil || !filepath.IsLocal(below) {
			t.Errorf("%s: %s, %v", name, place, err)
		}
		if err := os.MkdirAll(place, 0o700); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if real, err := filepath.EvalSymlinks(place); err != nil || real != place {
			t.Errorf("%s: %s is %s, %v", name, place, real, err)
		}
	}
}

func TestAStateDirectoryWithLinksIsRefused(t *testing.T) {
	for _, name := range []string{
		"tx", "key", "jobs", "overlays", "tx/open", "tx/spare", "tx/open/1/journal", "tx/open/1/u",
		"tx/done/1", "jobs/1/job",
	} {
		root := t.TempDir()
		path := filepath.Join(root, "state", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.Symlink("/host", path)); err != nil {
			t.Fatal(err)
		}
		if _, err := core.StateBelow(root, "/state"); !errors.Is(err, fault.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	root := t.TempDir()
	kept := filepath.Join(root, "state/tx/open/1/u")
	if err := errors.Join(os.MkdirAll(kept, 0o700), os.Symlink("/host", kept+"/7")); err != nil {
		t.Fatal(err)
	}
	if _, err := core.StateBelow(root, "/state"); err != nil {
		t.Errorf("what a transaction keeps may be a link: %v", err)
	}
}
