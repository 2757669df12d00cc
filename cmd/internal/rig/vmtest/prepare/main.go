// Command prepare makes a machine ready for the tests that boot a guest: it installs what is missing (as root, from
// Debian), builds the guest, and boots it once. With everything in the cache it takes under a second.
//
//	go run ./cmd/internal/rig/vmtest/prepare
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/debian"
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
	if err := debian.Install(ctx, image.Missing); err != nil {
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
