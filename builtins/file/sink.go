package file

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// sink is where the content of an upload goes while it comes, and what becomes of it at its end:
//
//	nothing there, or a file      staged beside it ► renamed            it is there whole, or what was there is
//	a file with several names,    staged beside it ► copied into it     all names have it; a crash may leave a part of it
//	or with a mount on it
//	a file that is appended to    staged beside it ► added to what is there by then
//	a file of /proc, /sys …       kept in memory ► one write            the kernel takes it, or says why not
//	a device                      written as it comes
type sink interface {
	io.Writer
	// digest returns the SHA-256 of what has come, in hex.
	digest(ctx context.Context) (string, error)
	// finish puts what has come in its place. The sink has ended, whether that could be done or not.
	finish(ctx context.Context, call *builtins.Call, attr fsys.Attr) error
	// discard ends the sink, with all that it keeps.
	discard() error
}

// maxKernelWrite is the most bytes that are written to a file of the kernel: each of them takes less.
const maxKernelWrite = 1 << 20

// sinkFor begins a sink for the content of what c found. Nothing is seen of it yet, but for a device that acts on being opened.
func (r *Room) sinkFor(c *change, path string, add bool, attr fsys.Attr) (sink, error) {
	pseudo, err := c.At.Pseudo()
	if err != nil {
		return nil, err
	}
	switch device := c.Old.Kind == fsys.BlockDevice || c.Old.Kind == fsys.CharDevice; {
	case pseudo && c.Absent():
		return nil, fs.ErrNotExist // only the kernel makes files there
	case (device || pseudo) && (attr.UID != nil || attr.GID != nil):
		return nil, fault.Invalid("an owner is set on files alone")
	case device:
		if err := c.ownPlace(); err != nil {
			return nil, err
		}
		return newDeviceSink(c)
	case pseudo && c.Old.Kind == fsys.File:
		return &kernelSink{room: r, path: path}, nil
	}
	inPlace := c.inPlace()
	if inPlace {
		err = c.ownPlace()
	} else {
		err = c.At.CheckReplace(c.Old)
	}
	if err != nil {
		return nil, err
	}
	staged, err := r.stage(c)
	if err != nil {
		return nil, err
	}
	s := &stagedSink{room: r, path: path, at: c.Path, staged: staged, old: c.Old}
	switch {
	case add:
		s.place = s.add
	case inPlace:
		s.place = s.overwrite
	default:
		s.place = s.commit
	}
	return s, nil
}

// stage begins a file beside its place, or in it where nothing is. What a dead agent left there would stay for ever; a failure
// to look for it is no reason to refuse a file.
func (r *Room) stage(c *change) (*fsys.Staged, error) {
	if dir := fsys.Parent(c.At.Path); !c.swept {
		if r.left.due(dir) {
			_, _ = c.At.Sweep()
		}
		r.left.note(dir)
	}
	return c.At.Stage()
}

// inPlace reports whether a file must not be replaced by another one: its other names, or its mount, would keep the old one.
func (c *change) inPlace() bool { return c.Old.Kind == fsys.File && (c.Old.Links > 1 || c.Old.Mounted) }

// separate has a file with several names replaced under this one alone.
func (c *change) separate() {
	if c.Old.Kind == fsys.File {
		c.Old.Links = 1
	}
}

// ownPlace refuses what another user may have put where it is, to have something else written to by that name: also a further
// name of a file that is not his.
func (c *change) ownPlace() error {
	dir, err := c.At.StatDir()
	if err != nil {
		return err
	}
	trusted, err := c.At.Trusted(c.Old, nil)
	const others = 0o022
	if err == nil && (!trusted || dir.Mode&others != 0 || dir.UID != 0 && dir.UID != uint32(os.Geteuid())) {
		err = fault.Refuse("it would be written in place, and others can put files into the directory")
	}
	return err
}

// stagedSink is a file beside the one that it is for.
type stagedSink struct {
	room   *Room
	path   string
	at     string // where path led to when it began, resolved
	staged *fsys.Staged
	old    fsys.Meta // of the file that it is for, when it began
	size   int64
	place  func(ctx context.Context, call *builtins.Call, attr fsys.Attr) error
}

func (s *stagedSink) Write(p []byte) (int, error) {
	n, err := s.staged.File.Write(p)
	s.size += int64(n)
	return n, fault.Cause(err)
}

// digest reads the file back: only the last chunk reports whether a digest is wanted, and summing all files for that costs more
// than all else together.
func (s *stagedSink) digest(ctx context.Context) (string, error) { return digestOf(ctx, s.staged.File) }

func (s *stagedSink) finish(ctx context.Context, call *builtins.Call, attr fsys.Attr) error {
	if err := call.CheckKept(s.at); err != nil { // by a transaction that began meanwhile
		return errors.Join(err, s.staged.Discard())
	}
	return s.place(ctx, call, attr)
}

func (s *stagedSink) discard() error { return s.staged.Discard() }

// content reads what has come.
func (s *stagedSink) content() io.Reader { return io.NewSectionReader(s.staged.File, 0, s.size) }

// commit gives the file its name, if the path leads where it led with the first chunk. It ends the staging.
func (s *stagedSink) commit(_ context.Context, call *builtins.Call, attr fsys.Attr) error {
	if err := s.room.leadsTo(call, s.path, s.staged); err != nil {
		return errors.Join(err, s.staged.Discard())
	}
	return s.staged.Commit(attr, true)
}

// leadsTo returns why a path does not lead to what a file was staged for: a directory above it was moved, or exchanged.
func (r *Room) leadsTo(call *builtins.Call, path string, staged *fsys.Staged) error {
	at, err := r.guest.Of(call).Follow(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.Wrapf(fault.ErrChanged, "its directory is gone; begin again")
	}
	if err != nil {
		return err
	}
	defer at.Close()
	return staged.CheckPlace(at)
}

// overwrite writes the content into the file that is there, when there is space for it. It ends the staging.
func (s *stagedSink) overwrite(_ context.Context, call *builtins.Call, attr fsys.Attr) (err error) {
	defer func() { err = errors.Join(err, s.staged.Discard()) }()
	at, err := s.room.guest.Of(call).Follow(s.path)
	if err != nil {
		return err
	}
	defer at.Close()
	return s.into(at, 0, attr)
}

// into makes the content that of the file at an entry from an offset on, and durable.
func (s *stagedSink) into(at *fsys.At, from int64, attr fsys.Attr) (err error) {
	file, err := at.OpenInPlace()
	if errors.Is(err, syscall.ETXTBSY) {
		err = fault.Wrapf(fault.ErrBusy, "it is a program that runs, and has other names")
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fault.Cause(file.Close())) }()
	meta, err := fsys.StatFile(file)
	switch {
	case err != nil:
		return err
	case !meta.Same(s.old):
		return fault.Wrapf(fault.ErrChanged, "another file took its place meanwhile")
	}
	if err := fsys.Reserve(file, from+s.size); err != nil {
		return errors.Join(err, fault.Cause(file.Truncate(meta.Size))) // which gives back what was reserved
	}
	attr, err = at.Narrow(file, meta, attr)
	defer func() {
		if err != nil {
			err = errors.Join(err, at.SetAttrFile(file, fsys.Attr{Mode: &meta.Mode}))
		}
	}()
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.NewOffsetWriter(file, from), s.content()); err != nil {
		return fault.Cause(err)
	}
	if err := file.Truncate(from + s.size); err != nil {
		return fault.Cause(err)
	}
	if err := at.SetAttrFile(file, attr); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return fault.Cause(err)
	}
	return at.CheckFile(file)
}

// add puts the content after what is in the file by now. It ends the staging.
func (s *stagedSink) add(ctx context.Context, call *builtins.Call, attr fsys.Attr) (err error) {
	defer func() { err = errors.Join(err, s.staged.Discard()) }()
	c, err := s.room.begin(call, "file_write", s.path, followLinks)
	if err != nil {
		return err
	}
	defer c.Close()
	if c.inPlace() {
		if err := c.ownPlace(); err != nil {
			return err
		}
		s.old = c.Old
		return s.into(c.At, c.Old.Size, attr)
	}
	if trusted, err := c.At.Trusted(c.Old, attr.UID); err != nil || !trusted {
		return errors.Join(err, fault.Refuse("it belongs to user %d, and others can write to the directory", c.Old.UID))
	}
	whole, err := c.At.Stage()
	if err != nil {
		return err
	}
	if c.Old.Kind == fsys.File {
		err = c.CopyOld(ctx, whole.File)
	}
	if err == nil {
		_, err = io.Copy(whole.File, s.content())
	}
	if err != nil {
		return errors.Join(fault.Cause(err), whole.Discard())
	}
	return whole.Commit(attr, true)
}

// kernelSink is a file that the kernel makes up: it takes a whole value in one write. Its mode stays.
type kernelSink struct {
	room    *Room
	path    string
	content []byte
}

func (s *kernelSink) Write(p []byte) (int, error) {
	if len(s.content)+len(p) > maxKernelWrite {
		return 0, fault.Wrapf(fault.ErrTooLarge, "a file of the kernel takes no more than %d bytes", maxKernelWrite)
	}
	s.content = append(s.content, p...)
	return len(p), nil
}

func (s *kernelSink) digest(context.Context) (string, error) {
	sum := sha256.Sum256(s.content)
	return hex.EncodeToString(sum[:]), nil
}

func (s *kernelSink) finish(_ context.Context, call *builtins.Call, _ fsys.Attr) error {
	at, err := s.room.guest.Of(call).Follow(s.path)
	if err != nil {
		return err
	}
	defer at.Close()
	if err := call.CheckKept(at.Path); err != nil {
		return err
	}
	if pseudo, err := at.Pseudo(); err != nil || !pseudo {
		return errors.Join(err, fault.Wrapf(fault.ErrChanged, "the path leads elsewhere than with the first chunk"))
	}
	file, err := at.OpenSink()
	if err != nil {
		return err
	}
	_, err = file.Write(s.content)
	if err = fault.Cause(err); errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ERANGE) {
		err = fault.Invalid("the kernel refuses the value: %v", err)
	}
	return errors.Join(err, fault.Cause(file.Close()))
}

func (s *kernelSink) discard() error { return nil }

// deviceSink is a device. Its mode stays.
type deviceSink struct {
	file *os.File
	size int64
	sum  hash.Hash // nil: it can be read back
}

// deviceTimeout bounds the wait for a device that takes nothing, such as a serial port that nobody reads.
const deviceTimeout = 10 * time.Second

func newDeviceSink(c *change) (sink, error) {
	file, err := c.At.OpenSink()
	if errors.Is(err, syscall.EBUSY) {
		err = fault.Wrapf(fault.ErrBusy, "it is mounted, or otherwise in use")
	}
	if err != nil {
		return nil, err
	}
	s := &deviceSink{file: file}
	if c.Old.Kind == fsys.CharDevice {
		s.sum = sha256.New()
	}
	return s, nil
}

func (s *deviceSink) Write(p []byte) (int, error) {
	_ = s.file.SetWriteDeadline(time.Now().Add(deviceTimeout)) // not all devices know one; those never wait
	n, err := s.file.Write(p)
	if s.size += int64(n); s.sum != nil {
		s.sum.Write(p[:n])
	}
	return n, fault.Cause(err)
}

func (s *deviceSink) digest(ctx context.Context) (string, error) {
	if s.sum != nil {
		return hex.EncodeToString(s.sum.Sum(nil)), nil
	}
	sum := sha256.New()
	for offset := int64(0); offset < s.size; offset += verifyStep {
		if err := context.Cause(ctx); err != nil {
			return "", err
		}
		if _, err := io.Copy(sum, io.NewSectionReader(s.file, offset, min(verifyStep, s.size-offset))); err != nil {
			return "", fault.Cause(err)
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// verifyStep is how many bytes are read back between two checks of the context.
const verifyStep = 4 << 20

func (s *deviceSink) finish(context.Context, *builtins.Call, fsys.Attr) error {
	err := fault.Cause(s.file.Sync())
	if errors.Is(err, syscall.EINVAL) { // it keeps nothing back
		err = nil
	}
	return errors.Join(err, fault.Cause(s.file.Close()))
}

func (s *deviceSink) discard() error { return fault.Cause(s.file.Close()) }
