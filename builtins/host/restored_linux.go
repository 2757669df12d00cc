package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
)

// restored has systemd look again at what it had read before a recovery at early boot: that runs its generators too, and
// netplan's is one of them. What a generator wants only now is not in the boot that is under way, so the network is started
// by name.
func (r *Room) restored(ctx context.Context, paths []string) error {
	below := func(dir string) bool {
		return slices.ContainsFunc(paths, func(path string) bool { return strings.HasPrefix(path, dir) })
	}
	netplan := below("/etc/netplan/")
	if _, err := os.Stat("/run/systemd/system"); err != nil || !r.guest.Live || !netplan && !below("/etc/systemd/") && !below(fstabFile) {
		return nil
	}
	if err := r.systemctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	wanted, _ := filepath.Glob("/run/systemd/generator*/*.wants/systemd-networkd.service") // the pattern is a good one
	if !netplan || len(wanted) == 0 {
		return nil
	}
	return r.systemctl(ctx, "start", "--no-block", "systemd-networkd.service")
}

func (r *Room) systemctl(ctx context.Context, args ...string) error {
	result, err := r.guest.Runner.Run(ctx, proc.Spec{Argv: append([]string{"systemctl"}, args...), Tied: true})
	if err == nil {
		err = result.Err()
	}
	if err != nil {
		return fmt.Errorf("systemctl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
