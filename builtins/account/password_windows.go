package account

import (
	"context"
	"errors"
	"slices"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// password sets a password. What it was nobody knows, so that is always a change, and nothing takes it back.
func (r *Room) password(ctx context.Context, call *builtins.Call, in *pb.AccountPasswordArgs) (*pb.Changed, error) {
	defer clear(in.Password)
	if err := r.setPassword(ctx, call, "account.password", in.Name, in.Password, in.Crypted, in.Expire); err != nil {
		return nil, fault.On(shownName(in.Name), err)
	}
	return &pb.Changed{Changed: true}, nil
}

func (r *Room) resetPassword(
	ctx context.Context, call *builtins.Call, in *pb.ResetPasswordRequest,
) (*pb.ResetPasswordResponse, error) {
	secret := []byte(in.NewPassword)
	defer clear(secret)
	if err := r.setPassword(ctx, call, "reset_password", in.Username, secret, in.Crypted, &in.Expire); err != nil {
		return nil, fault.On(shownName(in.Username), err)
	}
	return &pb.ResetPasswordResponse{Success: true, MustChange: in.Expire}, nil
}

func (r *Room) setPassword(
	ctx context.Context, call *builtins.Call, op, name string, secret []byte, crypted bool, expire *bool,
) error {
	switch {
	case checkName(name) != nil:
		return checkName(name)
	case crypted:
		return fault.Unsupported("Windows takes no hash for a password")
	case len(secret) == 0:
		return fault.Invalid("the password is empty")
	case !utf8.Valid(secret) || utf8.RuneCount(secret) > maxPassword || slices.Contains(secret, 0):
		return fault.Invalid("the password is not UTF-8 text, has a zero byte, or more than %d characters", maxPassword)
	}
	d, u, err := r.existing(call, name)
	if err != nil {
		return err
	}
	change := &pb.Change{Op: op, Target: u.name, Action: "modified", ContentHidden: true}
	if err := irreversible(ctx, call, change); err != nil {
		return err
	}
	encoded := encode(secret)
	defer clear(encoded)
	if err := d.setPassword(u.name, encoded); err != nil {
		return err
	}
	if expire != nil && (*expire || u.expired) {
		if err := d.setExpired(u.name, *expire); err != nil {
			return err
		}
		if now, err := d.get(u.name); err != nil || now == nil || now.expired != *expire {
			return errors.Join(fault.Wrapf(fault.ErrOutput, "the password is set, but not whether it must be changed"), err)
		}
	}
	report(call, change)
	return nil
}
