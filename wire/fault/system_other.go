//go:build !windows

package fault

// fromSystem returns the error: what the system says is what the table has.
func fromSystem(err error) error { return err }

// systemCause returns nil, for the same reason.
func systemCause(error) error { return nil }
