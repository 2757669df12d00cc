// Command prepare makes a machine ready for the tests that boot a guest: it installs what is missing (as root, from
// Debian), builds the guest, and boots it once. With everything in the cache it takes under a second.
//
//	go run ./cmd/internal/rig/vmtest/prepare
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/image"
)

// keep is how long an image stays in the cache after its last use: long enough for a branch that is looked at every
// other week, short enough that old recipes do not fill the disk.
const keep = 15 * 24 * time.Hour

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := prepare(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "prepare:", err)
		os.Exit(1)
	}
}

func prepare(ctx context.Context) error {
	begun := time.Now()
	if err := install(ctx, image.Missing()); err != nil {
		return err
	}
	if _, err := image.BuildRoot(ctx, os.Stderr); err != nil {
		return err
	}
	dir, err := vmtest.Prepare(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("guest ready in %s (%v)\n", dir, time.Since(begun).Round(time.Millisecond))
	return image.Prune("", keep)
}

// install installs packages as root, and otherwise says how.
func install(ctx context.Context, packages []string) error {
	if len(packages) == 0 {
		return nil
	}
	slices.Sort(packages)
	line := "apt-get install --no-install-recommends " + strings.Join(packages, " ")
	if os.Geteuid() != 0 {
		return fmt.Errorf("missing programs; as root on Debian: %s", line)
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("missing programs, and no apt-get to install them: %s", strings.Join(packages, " "))
	}
	if apt(ctx, packages) == nil {
		return nil
	}
	// A fresh machine or container has no package lists, or outdated ones.
	if err := run(ctx, "apt-get", "update"); err != nil {
		return err
	}
	if err := apt(ctx, packages); err != nil {
		return err
	}
	if left := image.Missing(); len(left) > 0 {
		return errors.New("still missing after the installation: " + strings.Join(left, " "))
	}
	return nil
}

func apt(ctx context.Context, packages []string) error {
	// Another installation may hold dpkg's lock; waiting for it is better than giving up.
	args := []string{"-o", "DPkg::Lock::Timeout=600", "install", "-y", "--no-install-recommends"}
	return run(ctx, "apt-get", append(args, packages...)...)
}

func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, args[0], err)
	}
	return nil
}
