// Package image builds what the test guest boots from, and keeps it in the user's cache.
//
//	packages ─► mmdebstrap ─► root.tar ─► mke2fs ─► root-<hash>/  root.raw, vmlinuz, modules/
//	programs ─► go build   ─► initramfs ──────────► vm-<hash>/    initrd, …
//
// The first directory depends on the recipe below only and takes a minute or two; the second changes with the rig's own
// programs and takes seconds. Both are built beside their place and renamed into it, under a lock, so a directory that
// exists is whole and two runs do not build the same thing.
//
// Not here: starting a machine, and what package vmtest adds to the second directory after the first boot.
package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Root is a finished root layer.
type Root struct {
	Disk    string // raw ext4 image, never written after it was built
	Kernel  string
	Modules string // directory of the modules that the initramfs loads, named in their order
	Hash    string // of the recipe
}

// Cache returns the directory that holds the layers: quantix-kvm-agent in the user's cache directory.
func Cache() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("vm image: %w", err)
	}
	return filepath.Join(base, "quantix-kvm-agent"), nil
}

// FindRoot returns the root layer that a former BuildRoot left in the cache, or an error that wraps fs.ErrNotExist.
func FindRoot() (*Root, error) {
	cache, err := Cache()
	if err != nil {
		return nil, err
	}
	hash := Hash(recipe)
	dir := filepath.Join(cache, "root-"+hash)
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("vm image: %w", err)
	}
	return &Root{
		Disk:    filepath.Join(dir, "root.raw"),
		Kernel:  filepath.Join(dir, "vmlinuz"),
		Modules: filepath.Join(dir, "modules"),
		Hash:    hash,
	}, nil
}

// BuildRoot returns the root layer, building it when the cache has none. It needs Debian's archive, the programs of
// Programs, and either root or subordinate user ids. What the tools print goes to log.
func BuildRoot(ctx context.Context, log io.Writer) (*Root, error) {
	cache, err := Cache()
	if err != nil {
		return nil, err
	}
	_, err = Layer(cache, "root-"+Hash(recipe), func(tmp string) error { return buildRoot(ctx, tmp, log) })
	if err != nil {
		return nil, err
	}
	return FindRoot()
}

// Layer returns the directory name in cache, and first makes it when it is missing: build fills a new directory, which
// then gets its name. Only one process builds at a time; the others wait for it. A layer is marked as used, for Prune.
func Layer(cache, name string, build func(tmp string) error) (string, error) {
	dir := filepath.Join(cache, name)
	if used(dir) == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("vm image: %w", err)
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return "", fmt.Errorf("vm image: lock: %w", err)
	}
	defer unlock()
	if used(dir) == nil {
		return dir, nil
	}
	// Whatever an interrupted build left is ours to remove while we hold the lock.
	tmp := filepath.Join(cache, "building")
	if err := os.RemoveAll(tmp); err != nil {
		return "", fmt.Errorf("vm image: %w", err)
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return "", fmt.Errorf("vm image: %w", err)
	}
	if err := build(tmp); err != nil {
		return "", errors.Join(fmt.Errorf("vm image: build %s: %w", name, err), os.RemoveAll(tmp))
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", fmt.Errorf("vm image: %w", err)
	}
	return dir, nil
}

// used marks a layer as used now.
func used(dir string) error {
	now := time.Now()
	return os.Chtimes(dir, now, now)
}

// Prune removes the layers that nobody used for longer than age, of all whose name begins with prefix.
func Prune(prefix string, age time.Duration) error {
	cache, err := Cache()
	if err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return fmt.Errorf("vm image: lock: %w", err)
	}
	defer unlock()
	entries, err := os.ReadDir(cache)
	if err != nil {
		return fmt.Errorf("vm image: %w", err)
	}
	var errs []error
	for _, e := range entries {
		ours := strings.HasPrefix(e.Name(), "root-") || strings.HasPrefix(e.Name(), "vm-") || strings.HasPrefix(e.Name(), "agent-")
		ours = ours && strings.HasPrefix(e.Name(), prefix)
		info, err := e.Info()
		if ours && err == nil && time.Since(info.ModTime()) > age {
			errs = append(errs, os.RemoveAll(filepath.Join(cache, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Hash returns a short name for what the parts say together.
func Hash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// HashFile returns the SHA-256 of a file's content, in hexadecimal.
func HashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Programs lists the host programs that building and running the guest needs, each with its Debian package.
func Programs() map[string]string {
	programs := map[string]string{
		"qemu-system-x86_64": "qemu-system-x86",
		"qemu-img":           "qemu-utils",
		"mmdebstrap":         "mmdebstrap",
		"mke2fs":             "e2fsprogs",
		"tar":                "tar",
	}
	if os.Geteuid() != 0 {
		programs["newuidmap"] = "uidmap"
		programs["unshare"] = "util-linux"
	}
	return programs
}

// Missing returns the Debian packages of those Programs that are not installed.
func Missing() []string {
	var missing []string
	for program, pkg := range Programs() {
		if _, err := exec.LookPath(program); err == nil {
			continue
		}
		// An ordinary user's PATH often lacks the directories of mke2fs.
		if _, err := os.Stat("/usr/sbin/" + program); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, pkg)
		}
	}
	return missing
}
