package fsys

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// unixTime converts through the standard library's function, since the fields' sizes differ between machines.
func unixTime(t Time) unix.Timespec {
	spec, err := unix.TimeToTimespec(t.Time())
	if err != nil { // only where a C long is 32 bits
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return spec
}

// openFile opens for reading, or for both. O_NONBLOCK guards against a fifo, a device or a leased file that took the
// name since it was looked at.
func openFile(dir handle, name string, write bool) (*os.File, error) {
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
	}
	fd, err := unix.Openat(dir, name, flags|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openLeased opens without O_NONBLOCK, through a descriptor of what was looked at, so that it is no fifo or device by
// then. While the kernel waits for the lease to end it lets nobody take another one.
func openLeased(dir handle, name string) (*os.File, error) {
	o, err := openDescriptor(dir, name)
	if err != nil {
		return nil, err
	}
	defer o.close()
	meta, err := o.stat()
	if err == nil && meta.Kind != File {
		err = notRegular(meta.Kind)
	}
	if err != nil {
		return nil, err
	}
	for {
		fd, err := unix.Open(o.path(), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if err != unix.EINTR {
			return nil, err
		}
	}
}

// openSink opens a device, or a file of the kernel, for writing, through a descriptor of what was looked at, so that opening
// acts on nothing else. A disk is opened for reading as well, and exclusively: it is busy where it is mounted. What can be
// written alone is opened for that alone.
func openSink(dir handle, name string, kind Kind) (*os.File, error) {
	o, err := openDescriptor(dir, name)
	if err != nil {
		return nil, err
	}
	defer o.close()
	meta, err := o.stat()
	if err == nil && meta.Kind != kind {
		err = fault.ErrChanged
	}
	if err != nil {
		return nil, err
	}
	flags := unix.O_WRONLY | unix.O_NONBLOCK
	if kind == BlockDevice {
		flags = unix.O_RDWR | unix.O_EXCL
	}
	fd, err := unix.Open(o.path(), flags|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// startWriting has the disk begin to write what a file holds. It does not wait; a sync reports what fails.
func startWriting(file *os.File) {
	_ = unix.SyncFileRange(int(file.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
}

// Reserve has the file system keep space for a file of a size, where it can, so that writing it does not fail for want of it.
// The file's size stays.
func Reserve(file *os.File, size int64) error {
	err := unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, max(size, 1))
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		return nil
	}
	return err
}

func createAt(dir handle, name string) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openDir opens a directory for reading.
func openDir(dir handle, name string) (handle, error) {
	return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// openNames opens a directory once more, so that it can be read from its beginning.
func openNames(dir handle) (*os.File, error) {
	fd, err := openDir(dir, ".")
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "."), nil
}

func lockFile(file *os.File) error { return unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// holdLock keeps the lock of a file beyond its Close, whose error is wanted before the lock may go.
func holdLock(file *os.File) (release func(), err error) {
	fd, err := dupHandle(int(file.Fd()))
	return func() { _ = unix.Close(fd) }, err
}

func mkdirAt(dir handle, name string) error { return unix.Mkdirat(dir, name, 0o700) }

func symlinkAt(target string, dir handle, name string) error {
	return unix.Symlinkat(target, dir, name)
}

func linkAt(fromDir handle, from string, toDir handle, to string) error {
	return unix.Linkat(fromDir, from, toDir, to, 0)
}

func unlinkAt(dir handle, name string, isDir bool) error {
	flags := 0
	if isDir {
		flags = unix.AT_REMOVEDIR
	}
	return unix.Unlinkat(dir, name, flags)
}

func renameAt(fromDir handle, from string, toDir handle, to string, replace bool) error {
	if replace {
		return unix.Renameat(fromDir, from, toDir, to)
	}
	err := unix.Renameat2(fromDir, from, toDir, to, unix.RENAME_NOREPLACE)
	if err != unix.EINVAL {
		return err
	}
	// The file system may not know the flag. Then nobody but us looks whether the name is free.
	if _, err := statAt(toDir, to); err == nil {
		return unix.EEXIST
	}
	return unix.Renameat(fromDir, from, toDir, to)
}

func syncDir(dir handle) error {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.Fsync(fd)
	return errors.Join(err, unix.Close(fd))
}

func makeAt(dir handle, name string, meta Meta) error {
	switch meta.Kind {
	case Directory:
		return mkdirAt(dir, name)
	case Symlink:
		return symlinkAt(meta.Target, dir, name)
	}
	bits := map[Kind]uint32{
		Fifo: unix.S_IFIFO, Socket: unix.S_IFSOCK, BlockDevice: unix.S_IFBLK, CharDevice: unix.S_IFCHR,
	}[meta.Kind]
	return unix.Mknodat(dir, name, bits|0o600, int(meta.Rdev))
}

// copyStep is how many bytes are copied between two checks of the context.
const copyStep = 16 << 20

// maxSizeless bounds the copy of a file whose size says nothing, in bytes: such a file may be endless.
const maxSizeless = 16 << 20

// CopyFile copies the content of a regular file into an empty one. Blocks are shared where the file system can, else
// holes stay holes. A file that shrinks meanwhile is fault.ErrChanged; one that grows is copied up to its size at the
// beginning. A file whose size says nothing, as those of /proc, is copied up to 16 MiB, beyond which it is
// fault.ErrTooLarge.
func CopyFile(ctx context.Context, to, from *os.File) error {
	return copyFile(ctx, to, from, func(*os.File, *os.File) error { return nil })
}

// CopyFitting is CopyFile for what is not begun where there is no space for it now.
func CopyFitting(ctx context.Context, to, from *os.File) error {
	return copyFile(ctx, to, from, checkSpace)
}

func copyFile(ctx context.Context, to, from *os.File, check func(to, from *os.File) error) error {
	if shareBlocks(to, from) == nil {
		return nil
	}
	info, err := from.Stat()
	if err != nil {
		return fault.Cause(err)
	}
	size := info.Size()
	sizeless, err := pseudo(int(from.Fd()))
	if err != nil {
		return err
	}
	if sizeless || size == 0 {
		return copySizeless(ctx, to, from)
	}
	if err := check(to, from); err != nil {
		return err
	}
	for offset := int64(0); offset < size; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		data, end, err := nextData(from, offset, size)
		if err != nil {
			return err
		}
		if err := copyRange(to, from, data, end-data); err != nil {
			return err
		}
		offset = end
	}
	return fault.Cause(to.Truncate(size))
}

// copySizeless copies what a file returns when it is read to its end.
func copySizeless(ctx context.Context, to, from *os.File) error {
	const step = 64 << 10 // what the kernel makes up while it is read may be slow
	for offset := int64(0); ; offset += step {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if offset > maxSizeless {
			return fault.Wrapf(fault.ErrTooLarge, "the file says no size, and has more than %d bytes", maxSizeless)
		}
		n, err := io.Copy(to, io.NewSectionReader(from, offset, step))
		if err != nil || n < step {
			return fault.Cause(err)
		}
	}
}

// sharesBlocks reports whether a copy of a file in a directory would share its blocks. It tries that with a file that has
// no name, and is gone at once.
func sharesBlocks(file *os.File, dir string) bool {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.IoctlFileClone(fd, int(file.Fd())) == nil
}

// checkSpace refuses a copy for which there is no space now: it would fill the disk, for others too, before it failed.
// What must be restored is copied without it: a file system may have more space than it says, such as what it is about
// to free.
func checkSpace(to, from *os.File) error {
	var stat unix.Stat_t
	var disk unix.Statfs_t
	if err := errors.Join(unix.Fstat(int(from.Fd()), &stat), unix.Fstatfs(int(to.Fd()), &disk)); err != nil {
		return err
	}
	if disk.Blocks > 0 && uint64(stat.Blocks)*512 > disk.Bavail*uint64(disk.Bsize) { // 0: a tmpfs without a limit
		return unix.ENOSPC
	}
	return nil
}

// nextData finds the next stretch of data from offset on, at most copyStep bytes of it; from size on there is none. A
// file system that knows no holes is all data.
func nextData(file *os.File, offset, size int64) (data, end int64, err error) {
	data, err = unix.Seek(int(file.Fd()), offset, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO:
		return size, size, nil
	case err == unix.EINVAL || err == unix.EOPNOTSUPP:
		return offset, min(offset+copyStep, size), nil
	case err != nil:
		return 0, 0, err
	}
	if end, err = unix.Seek(int(file.Fd()), data, unix.SEEK_HOLE); err != nil {
		return 0, 0, err
	}
	return min(data, size), min(end, data+copyStep, size), nil
}

func copyRange(to, from *os.File, offset, length int64) error {
	if length == 0 {
		return nil
	}
	for _, file := range []*os.File{to, from} {
		if _, err := file.Seek(offset, io.SeekStart); err != nil {
			return fault.Cause(err)
		}
	}
	_, err := io.CopyN(to, from, length) // in the kernel, where it can
	if err == io.EOF {
		return fault.ErrChanged
	}
	return fault.Cause(err)
}

// sweepTemp removes a temporary file that nobody has locked.
func sweepTemp(d *realDir, name string) (removed bool, err error) {
	file, err := openFile(d.handle, name, true)
	if errors.Is(err, fs.ErrPermission) { // it has its last mode already, which may forbid its owner to write
		file, err = openFile(d.handle, name, false)
	}
	if errors.Is(err, syscall.EAGAIN) { // a lease: somebody has it open
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	if lockFile(file) != nil {
		return false, nil
	}
	return true, removeTemp(d, name)
}

// shareBlocks gives a file the content of another one, in no space of its own.
func shareBlocks(to, from *os.File) error { return unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) }

// reserve takes the space for the content of a file.
func reserve(file *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	for {
		err := unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		if err != unix.EINTR {
			return err
		}
	}
}

func isSparse(file *os.File) (bool, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return false, err
	}
	return stat.Blocks*512 < stat.Size, nil // stat(2): blocks of 512 bytes
}
