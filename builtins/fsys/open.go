package fsys

import (
	"bytes"
	"io"
	"os"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Open opens the regular file here for reading. Anything else is refused at once, without opening it: a device may act
// on being opened, and a fifo would wait for a writer.
func (a *At) Open() (*os.File, error) { return a.open(false) }

// OpenInPlace opens the regular file here for reading and writing, with its content as it is. What is written is seen
// by all names of the file at once, and torn by a crash.
func (a *At) OpenInPlace() (*os.File, error) { return a.open(true) }

// OpenAppend opens the regular file here for reading, and for writing at its end alone: all that its flag a of chattr(1)
// allows.
func (a *At) OpenAppend() (*os.File, error) {
	meta, err := a.Stat()
	if err != nil {
		return nil, err
	}
	if meta.Kind != File {
		return nil, notRegular(meta.Kind)
	}
	file, err := a.dir.openAppend(a.Name)
	if err != nil {
		return nil, err
	}
	return file, a.heldOpen(file)
}

// OpenLeased is OpenInPlace of a file on which others may hold a lease, for which the other functions return
// syscall.EAGAIN. It waits until they give the lease up, or the kernel takes it from them: within 45 s by default.
func (a *At) OpenLeased() (*os.File, error) {
	file, err := a.dir.openLeased(a.Name)
	if err != nil {
		return nil, err
	}
	return file, a.heldOpen(file)
}

// OpenSink opens what is here for writing in place, a device or a file that the kernel makes up, such as one of /proc: such a
// thing is written to, and never replaced. A disk is opened for reading as well; one that is mounted, or otherwise in use, is
// syscall.EBUSY. Writing to it may act on the machine. Anything else than these and regular files is refused.
func (a *At) OpenSink() (*os.File, error) {
	meta, err := a.Stat()
	if err != nil {
		return nil, err
	}
	if meta.Kind != File && meta.Kind != BlockDevice && meta.Kind != CharDevice {
		return nil, notRegular(meta.Kind)
	}
	file, err := a.dir.openSink(a.Name, meta.Kind)
	if err != nil {
		return nil, err
	}
	return file, a.heldOpen(file)
}

func (a *At) open(write bool) (*os.File, error) {
	meta, err := a.Stat()
	if err != nil {
		return nil, err
	}
	if meta.Kind == Symlink {
		return nil, fault.Refuse("is a link")
	}
	if meta.Kind != File {
		return nil, notRegular(meta.Kind)
	}
	file, err := a.dir.open(a.Name, write)
	if err != nil {
		return nil, err
	}
	return file, a.heldOpen(file)
}

// ReadFile reads the regular file here, and returns fault.ErrTooLarge for one of more than limit bytes.
func (a *At) ReadFile(limit int64) ([]byte, error) {
	file, err := a.Open()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	// A file of /proc has size 0, and a log grows: so the size decides nothing. Reads at an offset never wait.
	var data bytes.Buffer
	if info, err := file.Stat(); err == nil { // the size saves memory: a buffer that grows is copied
		data.Grow(int(min(info.Size(), limit)) + bytes.MinRead)
	}
	if _, err := data.ReadFrom(io.NewSectionReader(file, 0, limit+1)); err != nil {
		return nil, fault.Cause(err)
	}
	if int64(data.Len()) > limit {
		return nil, fault.Wrapf(fault.ErrTooLarge, "the file has more than %d bytes", limit)
	}
	return data.Bytes(), nil
}
