package packages

import (
	"context"
	"errors"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// maxPrinted bounds what a program may print of the packages, in bytes.
const maxPrinted = 8 << 20

// Path is where programs of package managers are looked for.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Environment returns the environment of a program of a package manager: it asks nothing, and speaks English. A program of a
// tree that is not booted gets a setting not to speak to a service manager.
func Environment(g *guest.Guest) []string {
	env := []string{
		"PATH=" + Path, "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb",
		"DEBIAN_FRONTEND=noninteractive", "DEBCONF_NONINTERACTIVE_SEEN=true", "APT_LISTCHANGES_FRONTEND=none",
		"UCF_FORCE_CONFFOLD=1",
	}
	if !g.Live {
		env = append(env, "SYSTEMD_OFFLINE=1")
	}
	return env
}

// Of returns a reader of what a call acts on.
func Of(g *guest.Guest, call *builtins.Call) *Reader {
	r := &Reader{Files: g.Of(call), Live: g.Live}
	if g.Runner == nil && g.Answer == nil {
		return r
	}
	r.Query = func(ctx context.Context, argv ...string) ([]byte, error) {
		result, err := g.Run(ctx, guest.Command{Line: strings.Join(argv, " "), Readonly: true}, proc.Spec{
			Argv: argv, Root: g.Root(), Env: Environment(g), Tied: true, MaxOutput: maxPrinted,
		})
		if err != nil {
			return nil, NotStarted(g, err)
		}
		if err := result.Err(); err != nil {
			return nil, err
		}
		if result.Truncated {
			return nil, fault.Wrapf(fault.ErrTooLarge, "it prints more than %d bytes", maxPrinted)
		}
		return result.Stdout, nil
	}
	return r
}

// NotStarted makes an error of cause errors.ErrUnsupported of that of a program which could not be started: of a tree, whose
// programs need root and this processor, or of a system that does not have it.
func NotStarted(g *guest.Guest, err error) error {
	var start *proc.StartError
	switch {
	case !errors.As(err, &start):
		return err
	case !g.Live:
		return fault.Unsupported("the program of the tree cannot be run here: %v", err)
	case start.Stage == "program":
		return fault.Unsupported("%v", err)
	}
	return err
}
