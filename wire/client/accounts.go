package client

import (
	"context"
	"strings"
	"unicode"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// ResetPassword sets the password of a user of the guest. An agent that would take a hash for the password itself is not asked:
// the error is then errors.ErrUnsupported. Nor is one asked where a control character, or a colon in the name, could make it
// set the password of somebody else, which is fs.ErrInvalid.
func (c *Client) ResetPassword(ctx context.Context, request *pb.ResetPasswordRequest) (*pb.ResetPasswordResponse, error) {
	if strings.ContainsFunc(request.Username, func(r rune) bool { return r == ':' || unicode.IsControl(r) }) {
		return nil, fault.Invalid("the name of the user has a colon or a control character")
	}
	if strings.ContainsFunc(request.NewPassword, unicode.IsControl) {
		return nil, fault.Invalid("the password has a control character")
	}
	if request.Crypted {
		can, err := Call[*pb.GetCapabilitiesResponse](ctx, c, &pb.GetCapabilitiesRequest{})
		if err != nil {
			return nil, err
		}
		if can.Features["reset_password"] == "" {
			return nil, fault.Unsupported("the agent in the guest takes no hashes")
		}
	}
	return Call[*pb.ResetPasswordResponse](ctx, c, request)
}
