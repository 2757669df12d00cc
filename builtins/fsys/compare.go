package fsys

import (
	"bytes"
	"context"
	"io"
	"os"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// SameContent reports whether two regular files have the same content. Where both have a hole nothing is read.
func SameContent(ctx context.Context, a, b *os.File) (bool, error) {
	one, err := a.Stat()
	if err != nil {
		return false, fault.Cause(err)
	}
	other, err := b.Stat()
	if err != nil || one.Size() != other.Size() {
		return false, fault.Cause(err)
	}
	size := one.Size()
	if size == 0 { // empty, or files of /proc, which do not know their size
		return sameRange(ctx, a, b, 0, 1<<62)
	}
	for offset := int64(0); offset < size; {
		from, to, err := nextDataOfEither(a, b, offset, size)
		if err != nil {
			return false, err
		}
		if same, err := sameRange(ctx, a, b, from, to); !same || err != nil {
			return false, err
		}
		offset = to
	}
	return true, nil
}

// nextDataOfEither finds the next stretch in which one of two files has data.
func nextDataOfEither(a, b *os.File, offset, size int64) (from, to int64, err error) {
	from, to = size, size
	for _, file := range []*os.File{a, b} {
		data, end, err := nextData(file, offset, size)
		if err != nil {
			return 0, 0, err
		}
		switch {
		case data < from:
			to = min(end, from)
			from = data
		case data == from:
			to = min(to, end)
		default:
			to = min(to, data)
		}
	}
	return from, to, nil
}

// sameRange compares a range, as far as the files reach.
func sameRange(ctx context.Context, a, b *os.File, from, to int64) (bool, error) {
	one, other := make([]byte, 64<<10), make([]byte, 64<<10)
	for from < to {
		if err := context.Cause(ctx); err != nil {
			return false, err
		}
		want := min(int64(len(one)), to-from)
		n, err := a.ReadAt(one[:want], from)
		if err != nil && err != io.EOF {
			return false, fault.Cause(err)
		}
		m, otherErr := b.ReadAt(other[:want], from)
		if otherErr != nil && otherErr != io.EOF {
			return false, fault.Cause(otherErr)
		}
		if !bytes.Equal(one[:n], other[:m]) {
			return false, nil
		}
		if err == io.EOF || otherErr == io.EOF {
			return err == otherErr, nil
		}
		from += want
	}
	return true, nil
}
