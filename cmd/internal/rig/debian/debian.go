// Package debian installs what a test rig needs from Debian.
//
// Not here: what is needed, which the rigs say.
package debian

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Install installs the packages that missing returns, as root; with none missing it does nothing. Where it may not, the
// error is the line to run. It asks missing once more afterwards, and what is still named then is an error.
func Install(ctx context.Context, missing func() []string) error {
	packages := missing()
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
	if apt(ctx, packages) != nil {
		// A fresh machine or container has no package lists, or outdated ones.
		if err := run(ctx, "apt-get", "update"); err != nil {
			return err
		}
		if err := apt(ctx, packages); err != nil {
			return err
		}
	}
	if left := missing(); len(left) > 0 {
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
