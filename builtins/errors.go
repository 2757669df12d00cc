package builtins

import (
	"fmt"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// ErrPolicy is the cause of what a policy or the rights of a script refuse. It is a fault.ErrRefused.
var ErrPolicy = fmt.Errorf("policy: %w", fault.ErrRefused)

// ErrorKind is the kind of a ScriptError for an error that is not a script's own.
func ErrorKind(err error) string {
	switch code := fault.Code(err); code {
	case "not_found", "unsupported", "busy", "timeout", "cancelled":
		return code
	case "invalid", "too_large":
		return "params"
	case "refused", "permission", "stale":
		return "policy"
	}
	return "internal"
}
