package file

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// MaxChunk is the most bytes of data in one reply. With its envelope the reply then stays below 32,000 bytes, which the
// port takes whole or not at all; the host accepts chunks that are shorter than it asked for.
const MaxChunk = 31_000

func (r *Room) fileRead(_ context.Context, call *builtins.Call, in *pb.FileReadRequest) (*pb.FileReadResponse, error) {
	out, err := r.readOn(call, in)
	if errors.Is(err, errNotHeld) {
		out, err = r.readAnew(call, in)
	}
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return out, nil
}

// readAnew finds the file by its path, and keeps it open for the next chunk unless this was the last.
func (r *Room) readAnew(call *builtins.Call, in *pb.FileReadRequest) (*pb.FileReadResponse, error) {
	at, err := r.guest.Of(call).Follow(in.Path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	file, err := at.Open()
	if err != nil {
		return nil, err
	}
	meta, err := fsys.StatFile(file)
	var out *pb.FileReadResponse
	if err == nil {
		out, err = r.readFrom(file, meta, call, in)
	}
	if err != nil || out.Eof {
		_ = file.Close()
		return out, err
	}
	r.held.keep(readerKey{call.Port, in.Path}, file, meta)
	return out, nil
}

// readOn goes on with the file that an earlier chunk opened, if the path still leads to that one.
func (r *Room) readOn(call *builtins.Call, in *pb.FileReadRequest) (*pb.FileReadResponse, error) {
	key := readerKey{call.Port, in.Path}
	file, before := r.held.get(key)
	if file == nil {
		return nil, errNotHeld
	}
	meta, err := r.guest.Of(call).Identify(in.Path)
	if err != nil || !meta.Same(before) || meta.Born != before.Born {
		r.held.drop(key)
		return nil, errNotHeld
	}
	out, err := r.readFrom(file, meta, call, in)
	if errors.Is(err, os.ErrClosed) {
		return nil, errNotHeld
	}
	if err == nil && out.Eof {
		r.held.drop(key)
	}
	return out, err
}

// readFrom answers a request from its file, whose present state is meta.
func (r *Room) readFrom(file *os.File, meta fsys.Meta, call *builtins.Call, in *pb.FileReadRequest) (*pb.FileReadResponse, error) {
	if err := r.readers.check(call.Port, in, meta); err != nil {
		return nil, err
	}
	out, err := r.readChunk(file, meta, call, in)
	if err == nil {
		r.readers.advance(call.Port, in, meta, out)
	}
	return out, err
}

// readChunk fills one reply. The end is where a read gives nothing, or where a file that has a size says so; files of
// /proc have none, and a log may have grown since its size was asked.
func (r *Room) readChunk(file *os.File, meta fsys.Meta, call *builtins.Call, in *pb.FileReadRequest) (*pb.FileReadResponse, error) {
	want := uint64(MaxChunk)
	if in.ChunkSize > 0 {
		want = min(max(want, uint64(call.MaxChunk)), uint64(in.ChunkSize))
	}
	if in.Length > 0 {
		want = min(want, in.Length)
	}
	if in.Offset > 1<<62 {
		return nil, fault.Invalid("offset %d is behind the end of every file", in.Offset)
	}
	data := call.Buffer(int(want))
	n, err := file.ReadAt(data, int64(in.Offset))
	ended := err == io.EOF
	if err != nil && !ended {
		return nil, fault.Cause(err)
	}
	data = data[:n]
	reply := &struct { // in one piece of memory
		out      pb.FileReadResponse
		modified timestamppb.Timestamp
		crc      uint32
	}{crc: r.crc(data)}
	reply.modified.Seconds, reply.modified.Nanos = meta.Mtime.Sec, int32(meta.Mtime.Nsec)
	out := &reply.out
	out.Success, out.Data, out.Offset, out.TotalSize, out.Mode = true, data, in.Offset, uint64(meta.Size), typeAndMode(meta)
	out.Eof = ended || meta.Size > 0 && in.Offset+uint64(n) == uint64(meta.Size)
	out.ModifiedAt, out.Generation, out.Crc32C = &reply.modified, generation(meta), &reply.crc
	return out, nil
}

// generation names a state of a file.
func generation(meta fsys.Meta) string {
	text := make([]byte, 0, 80)
	text = append(strconv.AppendUint(text, meta.Dev, 16), '-')
	text = append(strconv.AppendUint(text, meta.Ino, 16), '-')
	text = append(strconv.AppendInt(text, meta.Mtime.Sec, 16), '.')
	nanos := strconv.AppendUint(make([]byte, 0, 10), 1e9+uint64(meta.Mtime.Nsec), 10) // nine digits after the one
	text = append(append(text, nanos[1:]...), '-')
	return string(strconv.AppendInt(text, meta.Size, 16))
}

const (
	// maxReaders is how many reads under way are watched for a change of their file.
	maxReaders = 64
	// readerAge is after how long a read that was not continued is forgotten.
	readerAge = 5 * time.Minute
)

// readers remembers which file each read under way is of. A host that knows nothing of generations reads a file by its
// path chunk after chunk; if another file took that path meanwhile it would get a mixture of the two. No file is held
// open for that: a reader that never comes back costs nothing.
type readers struct {
	mu   sync.Mutex
	open map[readerKey]reader
}

type readerKey struct{ port, path string }

type reader struct {
	file fsys.Meta
	next uint64
	seen time.Time
}

// check refuses to continue a read of what has become another file, or a shorter one.
func (r *readers) check(port string, in *pb.FileReadRequest, meta fsys.Meta) error {
	if in.Generation != "" && in.Generation != generation(meta) {
		return fault.Wrapf(fault.ErrChanged, "the file is another one than generation %s", in.Generation)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before, ok := r.open[readerKey{port, in.Path}]
	if !ok || in.Offset == 0 || in.Offset != before.next || time.Since(before.seen) > readerAge {
		return nil
	}
	if !meta.Same(before.file) || meta.Born != before.file.Born {
		return fault.Wrapf(fault.ErrChanged, "another file took the place of this one while it was read")
	}
	if meta.Size > 0 && uint64(meta.Size) < in.Offset || meta.Size == 0 && before.file.Size > 0 {
		return fault.Wrapf(fault.ErrChanged, "the file became shorter while it was read")
	}
	return nil
}

// advance remembers how far a read got, or forgets one that is at its end.
func (r *readers) advance(port string, in *pb.FileReadRequest, meta fsys.Meta, out *pb.FileReadResponse) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := readerKey{port, in.Path}
	if out.Eof {
		delete(r.open, key)
		return
	}
	if r.open == nil {
		r.open = map[readerKey]reader{}
	}
	if _, ok := r.open[key]; !ok && len(r.open) >= maxReaders {
		delete(r.open, r.oldest())
	}
	r.open[key] = reader{file: meta, next: in.Offset + uint64(len(out.Data)), seen: time.Now()}
}

func (r *readers) oldest() (oldest readerKey) {
	var seen time.Time
	for key, reader := range r.open {
		if seen.IsZero() || reader.seen.Before(seen) {
			oldest, seen = key, reader.seen
		}
	}
	return oldest
}
