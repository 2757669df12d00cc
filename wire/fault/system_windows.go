package fault

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/windows"
)

// systemCauses are what errors of Windows mean here. The standard library maps some of them to errors of its package fs, and
// none to those of Unix.
var systemCauses = map[syscall.Errno]error{
	windows.ERROR_DIR_NOT_EMPTY:           syscall.ENOTEMPTY,
	windows.ERROR_WRITE_PROTECT:           syscall.EROFS,
	windows.ERROR_DISK_FULL:               syscall.ENOSPC,
	windows.ERROR_HANDLE_DISK_FULL:        syscall.ENOSPC,
	windows.ERROR_DISK_QUOTA_EXCEEDED:     syscall.ENOSPC,
	windows.ERROR_DIRECTORY:               syscall.ENOTDIR,
	windows.ERROR_CANT_RESOLVE_FILENAME:   syscall.ELOOP,
	windows.ERROR_CRC:                     syscall.EIO,
	windows.ERROR_IO_DEVICE:               syscall.EIO,
	windows.ERROR_SEM_TIMEOUT:             context.DeadlineExceeded,
	windows.ERROR_NOT_SUPPORTED:           errors.ErrUnsupported,
	windows.ERROR_SHARING_VIOLATION:       ErrBusy,
	windows.ERROR_LOCK_VIOLATION:          ErrBusy,
	windows.ERROR_NETWORK_UNREACHABLE:     syscall.ENETUNREACH,
	windows.ERROR_HOST_UNREACHABLE:        syscall.ENETUNREACH,
	windows.ERROR_INVALID_NAME:            fs.ErrInvalid,
	windows.ERROR_BAD_PATHNAME:            fs.ErrInvalid,
	windows.ERROR_FILENAME_EXCED_RANGE:    fs.ErrInvalid,
	windows.ERROR_PRIVILEGE_NOT_HELD:      fs.ErrPermission,
	windows.ERROR_CANNOT_MAKE:             fs.ErrPermission,
	windows.ERROR_DELETE_PENDING:          ErrBusy,
	windows.ERROR_USER_MAPPED_FILE:        ErrBusy,
	windows.ERROR_SERVICE_DOES_NOT_EXIST:  fs.ErrNotExist,
	windows.ERROR_NONE_MAPPED:             fs.ErrNotExist,
	windows.ERROR_SERVICE_EXISTS:          fs.ErrExist,
	windows.ERROR_SERVICE_REQUEST_TIMEOUT: context.DeadlineExceeded,
}

// systemWords are the texts of the causes that a reader of other systems knows. Windows' own ones are in its language.
var systemWords = []struct {
	cause error
	text  string
}{
	{syscall.ENOTEMPTY, "directory not empty"},
	{syscall.EROFS, "read-only file system"},
	{syscall.ENOSPC, "no space left on device"},
	{syscall.ELOOP, "too many levels of symbolic links"},
	{syscall.EIO, "input/output error"},
	{ErrBusy, "another process uses it"},
	{fs.ErrNotExist, "no such file or directory"},
	{fs.ErrExist, "file exists"},
	{fs.ErrPermission, "permission denied"},
}

// fromSystem gives an error of the system a cause of the table, and words that do not depend on the language of Windows where
// there are some. Other errors stay as they are.
func fromSystem(err error) error {
	errno, ok := err.(syscall.Errno)
	if !ok {
		return err
	}
	causes := error(errno)
	if cause, known := systemCauses[errno]; known {
		causes = errors.Join(cause, errno)
	}
	if errno == windows.ERROR_DIRECTORY {
		return Wrapf(causes, "not a directory")
	}
	for _, w := range systemWords {
		if errors.Is(causes, w.cause) {
			return Wrapf(causes, "%s", w.text)
		}
	}
	text := strings.TrimRight(strings.TrimSpace(errno.Error()), ".")
	first, size := utf8.DecodeRuneInString(text)
	if second, _ := utf8.DecodeRuneInString(text[size:]); unicode.IsLower(second) || second == ' ' {
		text = string(unicode.ToLower(first)) + text[size:]
	}
	return Wrapf(causes, "%s", text)
}

// systemCause returns what an error means here whose chain holds one of the system; nil: nothing beside that.
func systemCause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return systemCauses[errno]
	}
	return nil
}
