//go:build blocktest

package blocktest

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// syncWatcher records all syncs of a process, and can skip them: the kernel asks it before each, by seccomp.
type syncWatcher struct {
	listener int
	skip     func(path string) bool

	mu      sync.Mutex
	syncs   []string
	skipped int
}

// notification and response are the kernel's struct seccomp_notif and struct seccomp_notif_resp, see seccomp_unotify(2).
type notification struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type response struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

const continueFlag = 1 // SECCOMP_USER_NOTIF_FLAG_CONTINUE

// watchSyncs watches the calling process until its end. skip reports which syncs do nothing; nil: none.
func watchSyncs(skip func(path string) bool) (*syncWatcher, error) {
	calls := []uint32{unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNCFS}
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // the number of the call
	for i, nr := range calls {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(calls) - i), K: nr})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW}, unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_USER_NOTIF})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return nil, fmt.Errorf("seccomp: %w", errno)
	}
	w := &syncWatcher{listener: int(fd), skip: skip}
	go w.watch() // ends with the process: without it no sync would ever return
	return w, nil
}

func (w *syncWatcher) watch() {
	for {
		asked := notification{}
		if err := w.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&asked)); err != nil {
			if errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.ENOENT) {
				continue
			}
			panic(err)
		}
		answer := response{id: asked.id, flags: continueFlag}
		if w.intercept(asked) {
			answer.flags = 0
		}
		if err := w.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&answer)); err != nil && !errors.Is(err, syscall.ENOENT) {
			panic(err)
		}
	}
}

// intercept records a sync, and reports whether it is skipped.
func (w *syncWatcher) intercept(asked notification) bool {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", asked.args[0]))
	if err != nil {
		path = err.Error()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if asked.nr == unix.SYS_SYNCFS {
		path = "all of " + path
	}
	w.syncs = append(w.syncs, path)
	if w.skip == nil || !w.skip(path) {
		return false
	}
	w.skipped++
	return true
}

func (w *syncWatcher) ioctl(request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(w.listener), request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}

// result returns the syncs so far, and how many were skipped.
func (w *syncWatcher) result() ([]string, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.syncs, w.skipped
}
