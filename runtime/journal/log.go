package journal

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/runtime/journal/internal/frames"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// log is the file of a transaction's records. Its blocks are allocated and zeroed ahead, so that appending a record is an
// overwrite: it needs no space, and fdatasync is the cheapest sync there is.
type log struct {
	journal   *Journal
	file      *os.File
	chain     frames.Chain
	end, size int64
	err       error // sticky: a sync that failed must not be tried again
}

// newLog makes the file at path, from the spare file if there is one.
func newLog(j *Journal, path, id string) (*log, error) {
	err := j.do("begin.spare", func() error { return os.Rename(j.dir("spare"), path) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l := &log{journal: j, chain: frames.NewChain(id)}
	err = j.do("begin.create", func() (err error) {
		l.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		return err
	})
	if err != nil || l.file == nil {
		return nil, errors.Join(err, errNotCreated(l.file))
	}
	info, err := l.file.Stat()
	if err == nil {
		l.size = info.Size()
		err = l.grow(initialSize)
	}
	if err != nil {
		return nil, errors.Join(fault.Cause(err), l.file.Close())
	}
	return l, nil
}

// errNotCreated returns the error for a file whose creation was skipped by Config.Step.
func errNotCreated(file *os.File) error {
	if file == nil {
		return fs.ErrNotExist
	}
	return nil
}

// openLog opens a file that another process left. scan comes next.
func openLog(j *Journal, path, id string) (*log, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return nil, fault.Cause(err)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(fault.Cause(err), file.Close())
	}
	return &log{journal: j, file: file, chain: frames.NewChain(id), size: info.Size()}, nil
}

// scan calls record for each record of a file that another process left, with its offset.
func (l *log) scan(id string, record func(payload []byte, at int64) error) (err error) {
	l.chain, l.end, err = frames.Scan(id, l.file, l.size, record)
	if errors.Is(err, frames.ErrDamaged) {
		return fault.Wrapf(fault.ErrCorrupt, "%v", err)
	}
	return fault.Cause(err)
}

// zeroTail removes the rest of a torn record after the last one.
func (l *log) zeroTail() error {
	part, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for rest := io.NewSectionReader(l.file, l.end, l.size-l.end); ; {
		n, err := io.ReadFull(rest, part)
		switch {
		case !bytes.Equal(part[:n], zeros[:n]):
			return l.zero(l.end, l.size)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return fault.Cause(err)
		}
	}
}

// read returns the record that begins at an offset.
func (l *log) read(at int64) (*pb.JournalRecord, error) {
	payload, err := l.chain.ReadAt(l.file, at, l.size)
	if err != nil {
		return nil, fault.Cause(err)
	}
	record := &pb.JournalRecord{}
	return record, proto.Unmarshal(payload, record)
}

// grow extends the file to at least that size.
func (l *log) grow(size int64) error {
	if size <= l.size {
		return nil
	}
	size = (size + initialSize - 1) / initialSize * initialSize
	if err := l.zero(l.size, size); err != nil {
		return err
	}
	l.size = size
	return nil
}

// zero writes zeros, which allocates the blocks.
func (l *log) zero(from, to int64) error {
	zeros := make([]byte, min(to-from, initialSize))
	for at := from; at < to; at += int64(len(zeros)) {
		part := zeros[:min(to-at, int64(len(zeros)))]
		err := l.journal.do("log.zero", func() error {
			_, err := l.file.WriteAt(part, at)
			return err
		})
		if err != nil {
			return err
		}
	}
	return l.journal.do("log.zerosync", l.file.Sync)
}

// append makes a record durable. last: the record may use the space that is reserved for the last one.
func (l *log) append(record *pb.JournalRecord, last bool) error {
	if l.err != nil {
		return l.err
	}
	size := proto.Size(record)
	if size > frames.MaxPayload {
		return fault.Wrapf(fault.ErrTooLarge, "the record exceeds %d bytes", frames.MaxPayload)
	}
	framed, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(make([]byte, frames.HeaderSize, frames.HeaderSize+size), record)
	if err != nil {
		return err
	}
	end := l.end + int64(len(framed))
	need := end
	if !last {
		need += lastRecordReserve
	}
	if err := l.grow(need); err != nil { // not sticky: the last record still fits
		return err
	}
	chain := l.chain
	chain.Seal(framed)
	err = l.journal.do("log.write", func() error {
		_, err := l.file.WriteAt(framed, l.end)
		return err
	})
	if err == nil {
		err = l.journal.do("log.sync", func() error { return dataSync(l.file) })
	}
	if err != nil {
		l.err = err
		return err
	}
	l.chain, l.end = chain, end
	return nil
}

// shrink frees the blocks after the space for the last record.
func (l *log) shrink() error {
	size := l.end + lastRecordReserve
	if size >= l.size {
		return fault.Wrapf(syscall.ENOSPC, "no space left, and none to free in the journal")
	}
	if err := l.journal.do("log.shrink", func() error { return l.file.Truncate(size) }); err != nil {
		return err
	}
	l.size = size
	return nil
}

// close closes the file. It may be called again.
func (l *log) close() error {
	if err := l.file.Close(); !errors.Is(err, os.ErrClosed) {
		return fault.Cause(err)
	}
	return nil
}
