package fsys

import (
	"context"
	"io"
	"os"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Overwrite writes size bytes of content over those of a file, from its beginning, and cuts it to that. Blocks of a file are
// shared where the file system can. Else the space is taken first: where there is too little the error is ENOSPC, and the file
// is as it was. A file system that cannot take space beforehand is errors.ErrUnsupported, before anything is written.
func Overwrite(ctx context.Context, to *os.File, content io.Reader, size int64) error {
	if from, ok := content.(*os.File); ok && shareBlocks(to, from) == nil {
		return fault.Cause(to.Truncate(size))
	}
	if err := reserve(to, size); err != nil {
		return err
	}
	for offset := int64(0); offset < size; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := io.CopyN(io.NewOffsetWriter(to, offset), content, min(copyStep, size-offset))
		if offset += n; err != nil {
			return fault.Cause(err)
		}
	}
	return fault.Cause(to.Truncate(size))
}

// IsSparse reports whether a file has less space than its size.
func IsSparse(file *os.File) (bool, error) { return isSparse(file) }
