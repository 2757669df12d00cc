package journal

import (
	"errors"
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

// openLog opens a file that another process left. Its first end bytes are valid records; the rest is zeroed.
func openLog(j *Journal, path string, chain frames.Chain, end int, data []byte) (*log, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return nil, fault.Cause(err)
	}
	l := &log{journal: j, file: file, chain: chain, end: int64(end), size: int64(len(data))}
	for _, b := range data[end:] {
		if b != 0 {
			err = l.zero(l.end, l.size)
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return l, nil
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
	payload, err := proto.Marshal(record)
	if err != nil {
		return err
	}
	if len(payload) > frames.MaxPayload {
		return fault.Wrapf(fault.ErrTooLarge, "the step's record exceeds %d bytes", frames.MaxPayload)
	}
	end := l.end + frames.HeaderSize + int64(len(payload))
	need := end
	if !last {
		need += lastRecordReserve
	}
	if err := l.grow(need); err != nil { // not sticky: the last record still fits
		return err
	}
	chain := l.chain
	framed := chain.Append(nil, payload)
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

// shrink frees the blocks behind the space for the last record.
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

func (l *log) close() error { return fault.Cause(l.file.Close()) }
