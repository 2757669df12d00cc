package file

import (
	"context"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// stagedName stands for the path of the new file in the arguments of a validator.
const stagedName = "%s"

// validator returns what has a program check a new file before that is put in place: a command that changes nothing, and is
// held to it. Nil: there is none.
func (r *Room) validator(call *builtins.Call, argv []string) (func(ctx context.Context, path string) error, error) {
	if len(argv) == 0 {
		return nil, nil
	}
	if argv[0] == "" || strings.Contains(strings.Join(argv, ""), "\x00") {
		return nil, fault.Invalid("validate has no program, or a NUL byte")
	}
	if !strings.Contains(strings.Join(argv[1:], "\n"), stagedName) {
		return nil, fault.Invalid("validate has no argument with %%s, which stands for the path of the new file")
	}
	return func(ctx context.Context, path string) error {
		spec := proc.Spec{Root: r.guest.Root(), Tied: true, Owner: call.Port}
		for i, arg := range argv {
			if i > 0 {
				arg = strings.ReplaceAll(arg, stagedName, path)
			}
			spec.Argv = append(spec.Argv, arg)
		}
		if r.guest.Answer == nil && r.guest.Runner != nil {
			spec.Env = proc.Environ(r.guest.Runner.LoginEnv(nil), nil)
			if r.guest.Runner.Confinement() == proc.Confined {
				spec.Confine = &proc.Confine{}
			} else {
				call.Warn(argv[0] + ", which validates, is not held to changing nothing: confinement is " + r.guest.Runner.Confinement())
			}
		}
		result, err := r.guest.RunValidator(ctx, guest.Command{Line: guest.Quote(argv), Readonly: true}, spec)
		if err == nil {
			err = result.Err()
		}
		if err != nil {
			return fault.Wrapf(err, "it is not put in place: %s: %v", argv[0], err)
		}
		return nil
	}, nil
}
