package client

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"unsafe"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

const pipePrefix = `\\.\pipe\`

// dialLocal connects to a named pipe, \\.\pipe\NAME or pipe:NAME, or to a unix socket. A pipe all of whose instances are in
// use until ctx ends is EAGAIN, as a unix socket is elsewhere.
func dialLocal(ctx context.Context, path string) (io.ReadWriteCloser, error) {
	name, isPipe := strings.CutPrefix(path, "pipe:")
	if !strings.HasPrefix(name, `\\`) && isPipe {
		name = pipePrefix + name
	}
	if !isPipe && !strings.HasPrefix(strings.ToLower(path), pipePrefix) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	conn, err := winio.DialPipeContext(ctx, name)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, winio.ErrTimeout) {
		return nil, syscall.EAGAIN
	}
	if err != nil {
		return nil, err
	}
	return conn, nil
}

var waitNamedPipe = windows.NewLazySystemDLL("kernel32.dll").NewProc("WaitNamedPipeW")

// localChannel returns the pipe of a virtual machine on this host, by its id; empty: there is none. Asking takes none of the
// pipe's instances.
func localChannel(id string) string {
	path := pipePrefix + "org.quantix.agent." + id
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return ""
	}
	const atOnce = 1 // ms; 0 stands for the pipe's own time
	there, _, cause := waitNamedPipe.Call(uintptr(unsafe.Pointer(name)), atOnce)
	if there == 0 && !errors.Is(cause, windows.ERROR_SEM_TIMEOUT) {
		return ""
	}
	return path
}

// pipeGone reports whether an error is that of a named pipe: one that cannot be opened, or whose other end has gone.
func pipeGone(err error) bool {
	var open *fs.PathError
	if errors.As(err, &open) && strings.HasPrefix(open.Path, pipePrefix) {
		return true
	}
	return errors.Is(err, windows.ERROR_BROKEN_PIPE) || errors.Is(err, windows.ERROR_NO_DATA) ||
		errors.Is(err, windows.ERROR_PIPE_NOT_CONNECTED) || errors.Is(err, winio.ErrFileClosed)
}
