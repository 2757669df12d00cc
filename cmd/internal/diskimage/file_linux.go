package diskimage

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The bytes of an image that QEMU locks (block/file-posix.c): for each permission that it has, and for each that it does not
// share.
const (
	hasPermission  = 100
	sharesNot      = 200
	readPermission = 0
	writes         = 1
)

// lockImage takes the locks that keep QEMU, and another call of this, from the image. They end with the file.
func lockImage(f *os.File, readOnly bool) error {
	at := func(kind int16, from, length int64) *unix.Flock_t {
		return &unix.Flock_t{Type: kind, Whence: 0, Start: from, Len: length}
	}
	// Nobody may have it open for writing, nor forbid that others do what is done here.
	foreign := at(unix.F_WRLCK, hasPermission+writes, 1)
	mine := int64(readPermission)
	if !readOnly {
		mine = writes
	}
	forbidden := at(unix.F_WRLCK, sharesNot+mine, 1)
	for _, l := range []*unix.Flock_t{foreign, forbidden} {
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, l); err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
		if l.Type != unix.F_UNLCK {
			return fmt.Errorf("%s: %w: QEMU, or another program, has it open", f.Name(), ErrInUse)
		}
	}
	return nil
}

// holdImage keeps QEMU from writing to a raw image, and from reading one that is written.
func holdImage(f *os.File, readOnly bool) error {
	offsets := []int64{hasPermission + readPermission, sharesNot + writes}
	if !readOnly {
		offsets = append(offsets, hasPermission+writes, sharesNot+readPermission)
	}
	for _, offset := range offsets {
		l := unix.Flock_t{Type: unix.F_RDLCK, Start: offset, Len: 1}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l); err != nil {
			return fmt.Errorf("%s: %w: %v", f.Name(), ErrInUse, err)
		}
	}
	return nil
}

// loopOf returns the loop device that is backed by the file; "": there is none.
func loopOf(path string) string {
	names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range names {
		if backing, err := os.ReadFile(name); err == nil && strings.TrimSuffix(string(backing), "\n") == path {
			return "/dev/" + strings.Split(name, "/")[3]
		}
	}
	return ""
}

// qcow2 reports whether an image is one of qcow2, by its first bytes.
func qcow2(f *os.File) bool {
	magic := make([]byte, 4)
	_, err := f.ReadAt(magic, 0)
	return err == nil && string(magic) == "QFI\xfb"
}

// The header of a qcow2 image (docs/interop/qcow2.txt of QEMU), in bytes; all numbers are big-endian.
const (
	qcow2Version      = 4
	qcow2Backing      = 8  // where the name of a backing file is, 0: there is none
	qcow2Incompatible = 72 // features, from version 3 on
	qcow2HeaderLength = 80
	externalData      = 1 << 2 // a feature: the content is in another file
)

// selfContained returns an error for a qcow2 image that names other files: who wrote the image could have them be any of this
// machine.
func selfContained(f *os.File) error {
	header := make([]byte, qcow2HeaderLength)
	if _, err := f.ReadAt(header, 0); err != nil {
		return fmt.Errorf("%s: read the header of qcow2: %w", f.Name(), err)
	}
	version := binary.BigEndian.Uint32(header[qcow2Version:])
	switch {
	case version != 2 && version != 3:
		return fmt.Errorf("%s: version %d of qcow2 is not supported", f.Name(), version)
	case binary.BigEndian.Uint64(header[qcow2Backing:]) != 0:
		return fmt.Errorf("%s has a backing file, which is not followed: make it whole by qemu-img convert, or by "+
			"qemu-img rebase -b ''", f.Name())
	case version == 3 && binary.BigEndian.Uint64(header[qcow2Incompatible:])&externalData != 0:
		return fmt.Errorf("%s has an external data file, which is not followed: make it whole by qemu-img convert", f.Name())
	}
	return nil
}

// exported is a qcow2 image that is seen as a raw file.
type exported struct {
	path  string // of the raw file
	stop  func()
	ended chan error
}

// startLimit is how long the storage daemon may take to open an image.
const startLimit = 30 * time.Second

// export starts a qemu-storage-daemon that shows a qcow2 image as the raw file at path, which must exist.
func export(ctx context.Context, image, path string, readOnly bool) (*exported, error) {
	tool, err := exec.LookPath("qemu-storage-daemon")
	if err != nil {
		return nil, fmt.Errorf("%s is a qcow2 image, and there is no qemu-storage-daemon: install qemu-system-common "+
			"(Debian, Ubuntu), qemu-img (Fedora) or qemu-storage-daemon (Alpine), or convert it to raw", image)
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return nil, fmt.Errorf("show %s as a raw file: %w; load the module fuse", image, err)
	}
	// A backing file is never opened, whatever the header has by now.
	disk, err := json.Marshal(map[string]any{
		"driver": "qcow2", "node-name": "disk", "file": "file", "discard": "unmap", "read-only": readOnly, "backing": nil,
	})
	if err != nil {
		return nil, err
	}
	escape := func(s string) string { return strings.ReplaceAll(s, ",", ",,") }
	onOff := map[bool]string{true: "on", false: "off"}
	cmd := exec.Command(tool,
		"--blockdev", "driver=file,node-name=file,filename="+escape(image)+",read-only="+onOff[readOnly],
		"--blockdev", string(disk),
		"--export", "type=fuse,id=raw,node-name=disk,mountpoint="+escape(path)+",writable="+onOff[!readOnly])
	var words strings.Builder
	cmd.Stdout, cmd.Stderr = &words, &words
	// It ends when this process is killed; a signal of the terminal is this process's to pass on, after the file systems are
	// unmounted.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	e := &exported{path: path, ended: make(chan error, 1)}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // Pdeathsig is about this thread
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			e.ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	e.stop = func() { _ = cmd.Process.Signal(syscall.SIGTERM) }
	var before unix.Statfs_t
	for deadline := time.Now().Add(startLimit); ; time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-e.ended:
			said := strings.TrimSpace(words.String())
			if strings.Contains(said, "lock") {
				return nil, fmt.Errorf("%s: %w: %s", image, ErrInUse, said)
			}
			return nil, fmt.Errorf("show %s as a raw file: %w: %s", image, err, said)
		default:
		}
		if err := unix.Statfs(path, &before); err == nil && before.Type == unix.FUSE_SUPER_MAGIC {
			return e, nil
		}
		if err := ctx.Err(); err != nil || time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("show %s as a raw file: it takes too long", image), err, e.close())
		}
	}
}

// close ends the daemon, which writes what it still has.
func (e *exported) close() error {
	e.stop()
	if err := <-e.ended; err != nil {
		return fmt.Errorf("qemu-storage-daemon: %w", err)
	}
	return nil
}

// isRegular reports whether there is a regular file.
func isRegular(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errors.New("it is no regular file")}
	}
	return err
}
