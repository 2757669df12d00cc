// Package fault is the one table between errors and the codes that cross the wire.
//
//	an operation fails with fs.ErrNotExist ──► code "not_found" ──► the host's errors.Is(err, fs.ErrNotExist)
//
// An error that has no code of its own is "internal". A code is never changed or reused.
//
// Not here: which operation fails when, and how a reply carries an error.
package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The causes for which the standard library has no error.
var (
	ErrBusy      = errors.New("busy")
	ErrRefused   = errors.New("refused")
	ErrTooLarge  = errors.New("too large")
	ErrUncertain = errors.New("uncertain, send again")
	ErrStale     = errors.New("stale request")
	ErrCorrupt   = errors.New("corrupt data")
	ErrChanged   = errors.New("changed meanwhile")
	ErrOutput    = errors.New("command failed")
	ErrInternal  = errors.New("internal error")
)

// table maps each code to its cause. The code of an error is that of the first row whose cause it wraps.
var table = []struct {
	code  string
	cause error
	retry bool
}{
	{"not_found", fs.ErrNotExist, false},
	{"not_empty", syscall.ENOTEMPTY, false}, // also an fs.ErrExist, so it comes first
	{"exists", fs.ErrExist, false},
	{"permission", fs.ErrPermission, false},
	{"read_only", syscall.EROFS, false},
	{"no_space", syscall.ENOSPC, true},
	{"is_directory", syscall.EISDIR, false},
	{"not_directory", syscall.ENOTDIR, false},
	{"loop", syscall.ELOOP, false},
	{"io", syscall.EIO, false},
	{"timeout", context.DeadlineExceeded, true},
	{"cancelled", context.Canceled, true},
	{"unsupported", errors.ErrUnsupported, false},
	{"busy", ErrBusy, true},
	{"refused", ErrRefused, false},
	{"too_large", ErrTooLarge, false},
	{"uncertain", ErrUncertain, true},
	{"stale", ErrStale, true},
	{"corrupt", ErrCorrupt, true},
	{"changed", ErrChanged, true},
	{"command_failed", ErrOutput, false},
	{"unreachable", syscall.ENETUNREACH, true},
	{"invalid", fs.ErrInvalid, false},
	{"internal", ErrInternal, false},
}

// Error is a failed operation: what failed, on what, and why. Its text is "op object: cause".
type Error struct {
	Op      string            // the operation, such as file.write; may be empty until it is known
	Object  string            // a path, a unit, a user; may be empty
	Err     error             // the cause; never nil
	Hint    string            // what the caller may do about it; may be empty
	Details map[string]string // for programs; may be nil
}

// Error returns the operation, the object and the cause.
func (e *Error) Error() string {
	head := e.Op
	if e.Object != "" {
		if head != "" {
			head += " "
		}
		head += e.Object
	}
	if head == "" {
		return e.Err.Error()
	}
	return head + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// On adds the object to an error; nil stays nil. The operation and path of a *fs.PathError are dropped, so that they do not
// stand there twice.
func On(object string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Object: object, Err: Cause(err)}
}

// Cause strips the operation and path that the os package put before an error. Errors of Windows get the words that others have
// for the same.
func Cause(err error) error {
	switch err := err.(type) {
	case *fs.PathError:
		return fromSystem(err.Err)
	case *os.LinkError:
		return fromSystem(err.Err)
	case *os.SyscallError:
		return fromSystem(err.Err)
	}
	return fromSystem(err)
}

// Refuse returns an error of code "refused" with this text.
func Refuse(format string, args ...any) error {
	return &wrapped{ErrRefused, fmt.Sprintf(format, args...)}
}

// Invalid returns an error of code "invalid" with this text.
func Invalid(format string, args ...any) error {
	return &wrapped{fs.ErrInvalid, fmt.Sprintf(format, args...)}
}

// Unsupported returns an error of code "unsupported" with this text.
func Unsupported(format string, args ...any) error {
	return &wrapped{errors.ErrUnsupported, fmt.Sprintf(format, args...)}
}

// Wrapf returns an error that wraps cause, and so has its code, and whose text is the given one alone.
func Wrapf(cause error, format string, args ...any) error {
	return &wrapped{cause, fmt.Sprintf(format, args...)}
}

// wrapped is a cause with a text in its place.
type wrapped struct {
	cause error
	text  string
}

func (s *wrapped) Error() string { return s.text }
func (s *wrapped) Unwrap() error { return s.cause }

// Code returns the code of an error; "" for nil.
func Code(err error) string {
	if err == nil {
		return ""
	}
	meant := systemCause(err)
	for _, row := range table {
		if errors.Is(err, row.cause) || meant != nil && errors.Is(meant, row.cause) {
			return row.code
		}
	}
	return "internal"
}

// Detail returns an error as it is sent; nil for nil.
func Detail(err error) *pb.ErrorDetail {
	if err == nil {
		return nil
	}
	detail := &pb.ErrorDetail{Code: Code(err), Message: err.Error()}
	for _, row := range table {
		if row.code == detail.Code {
			detail.Retryable = row.retry
		}
	}
	var f *Error
	if errors.As(err, &f) {
		detail.Op, detail.Object, detail.Details = f.Op, f.Object, f.Details
		if f.Hint != "" {
			details := map[string]string{"hint": f.Hint}
			for k, v := range f.Details {
				details[k] = v
			}
			detail.Details = details
		}
	}
	return detail
}

// FromDetail is the inverse of Detail: the error wraps the cause of the code, so that errors.Is holds. An unknown code is
// internal.
func FromDetail(detail *pb.ErrorDetail) error {
	if detail == nil {
		return nil
	}
	cause := ErrInternal
	for _, row := range table {
		if row.code == detail.GetCode() {
			cause = row.cause
		}
	}
	return &Remote{Detail: detail, cause: cause}
}

// Remote is an error that came over the wire. Its text is the sender's.
type Remote struct {
	Detail *pb.ErrorDetail
	cause  error
}

// Error returns the message of the sender.
func (r *Remote) Error() string { return r.Detail.GetMessage() }

// Unwrap returns the cause that the code stands for.
func (r *Remote) Unwrap() error { return r.cause }
