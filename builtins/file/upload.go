package file

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// An upload is a file that comes in chunks:
//
//	chunk 0 ► a sink, most often a file beside the target ► chunks in order ► eof: totals and digest hold ► in its place
//
// Until the last chunk the target is as it was, unless it is a device. A link that is safe is followed, and stays. An upload
// belongs to one path and one port. A chunk that cannot be the next one is refused, and the upload stays for the right one; a
// chunk that is one of the last ones taken is acknowledged again; chunk 0 begins anew. An upload with a name belongs to a port
// alone: it outlives its connection for a while, so that the host can go on with the first chunk that it heard nothing of. An
// upload is dropped with all it wrote after a write error, by a digest or total that does not hold, and when no chunk comes for
// a while. A chunk with append set belongs to content that is put after what is there, in one go at the end.
type upload struct {
	mu     sync.Mutex
	sink   sink           // nil before the first chunk and after the end
	made   []fsys.MadeDir // directories made for it
	append bool
	named  bool
	total  uint32
	attr   fsys.Attr
	next   uint64  // offset of the next chunk
	count  uint32  // chunks taken
	recent []chunk // the last ones taken, newest last
	// session is that of the connection which brought the last chunk.
	session string
	// finished: the file took its place, and a last chunk sent again is still acknowledged. dropped: nothing is any more.
	finished, dropped bool
	timer             *time.Timer
}

// chunk identifies a chunk.
type chunk struct {
	id     string // of the request
	number uint32
	offset uint64
	length int
	crc    uint32
	eof    bool
}

// maxRecent is how many chunks can be sent again: more than any host has under way.
const maxRecent = 64

// maxUploadName bounds the name of an upload, in bytes.
const maxUploadName = 128

// again reports whether a chunk is one that came before, whatever request brought it.
func (c chunk) again(other chunk) bool {
	other.id = c.id
	return c == other
}

func (r *Room) fileWrite(ctx context.Context, call *builtins.Call, in *pb.FileWriteRequest) (*pb.FileWriteResponse, error) {
	if err := r.takeChunk(ctx, call, in); err != nil {
		return nil, fault.On(in.Path, err)
	}
	return &pb.FileWriteResponse{Success: true, BytesWritten: uint64(len(in.Data)), ChunkNumber: in.ChunkNumber}, nil
}

// sessionOf is a connection.
func sessionOf(call *builtins.Call) string { return call.Port + "\x00" + call.Session }

// ownerOf is whose upload a chunk is of: of a connection, so that two that write the same file do not mix, or of whoever on
// that port knows its name.
func ownerOf(call *builtins.Call, in *pb.FileWriteRequest) string {
	if in.Upload == "" {
		return sessionOf(call)
	}
	return call.Port + "\x00\x00" + in.Upload
}

// sessionClosed drops the uploads that a connection had under way; those with a name are given some time to go on over another.
func (r *Room) sessionClosed(port, session string) {
	r.uploads.left(sessionOf(&builtins.Call{Port: port, Session: session}))
}

func (r *Room) takeChunk(ctx context.Context, call *builtins.Call, in *pb.FileWriteRequest) error {
	attr, err := r.checkChunk(in)
	if err != nil {
		return err
	}
	c := chunk{call.ID, in.ChunkNumber, in.Offset, len(in.Data), r.crc(in.Data), in.Eof}
	if in.Crc32C != nil && *in.Crc32C != c.crc {
		return fault.Wrapf(fault.ErrCorrupt, "chunk %d was damaged on its way: its CRC-32C is %08x", in.ChunkNumber, c.crc)
	}
	key := uploadKey{ownerOf(call, in), in.Path}
	u, err := r.uploads.get(key, c, in)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch first := c.number == 0 && c.offset == 0; {
	case u.dropped:
		return errNoUpload
	case u.taken(c):
		u.session = sessionOf(call)
		return nil
	case u.finished || u.count == 0 && !first:
		return errNoUpload
	case u.count > 0:
		if err := u.expects(c, in); err != nil {
			return err
		}
	default:
		err = r.start(call, u, in, attr)
	}
	if err == nil {
		u.merge(attr)
		err = r.take(ctx, call, u, c, in)
	}
	if err != nil {
		r.uploads.forget(key, u)
		return errors.Join(err, u.discard(r.guest.Files))
	}
	u.session = sessionOf(call)
	r.uploads.touch(key, u)
	return nil
}

var errNoUpload = fault.Wrapf(fault.ErrChanged, "no upload of this file is under way; begin again with chunk 0")

// checkChunk refuses what no chunk can be.
func (r *Room) checkChunk(in *pb.FileWriteRequest) (attr fsys.Attr, err error) {
	if err := checkTotal(in, in.TotalChunks); err != nil {
		return attr, err
	}
	if in.Sha256 != "" && !isDigest(in.Sha256) {
		return attr, fault.Invalid("sha256 is not a digest in hex")
	}
	if len(in.Upload) > maxUploadName {
		return attr, fault.Invalid("the name of the upload has more than %d bytes", maxUploadName)
	}
	if attr, err = r.owners(in.Owner, in.Group); err != nil {
		return attr, err
	}
	attr.Mode, err = nativeMode(in.Mode)
	return attr, err
}

// checkTotal holds the number of a chunk and its eof against the number of chunks; 0: not known.
func checkTotal(in *pb.FileWriteRequest, total uint32) error {
	switch last := uint64(in.ChunkNumber)+1 == uint64(total); {
	case total == 0:
		return nil
	case in.ChunkNumber >= total:
		return fault.Invalid("chunk %d is not one of %d", in.ChunkNumber, total)
	case in.Eof && !last:
		return fault.Invalid("chunk %d of %d cannot be the end", in.ChunkNumber, total)
	case !in.Eof && last:
		return fault.Invalid("chunk %d of %d must be the end, and eof is not set", in.ChunkNumber, total)
	}
	return nil
}

func isDigest(text string) bool {
	raw, err := hex.DecodeString(text)
	return err == nil && len(raw) == sha256.Size
}

// expects returns why a chunk is not the next one. A host that does not number its chunks is known by their offsets, and
// one may give the total with the first chunk alone.
func (u *upload) expects(c chunk, in *pb.FileWriteRequest) error {
	unnumbered := c.number == 0 && u.total == 0 && c.offset > 0
	switch {
	case in.Append != u.append || in.TotalChunks != 0 && in.TotalChunks != u.total:
		return fault.Invalid("chunk %d does not belong to the upload that is under way", c.number)
	case c.number != u.count && !unnumbered:
		return fault.Invalid("chunk %d came where chunk %d was due", c.number, u.count)
	case c.offset != u.next && !(u.append && c.offset == 0):
		return fault.Invalid("offset %d came where %d was due", c.offset, u.next)
	}
	return checkTotal(in, u.total)
}

// taken reports whether a chunk is one of the last ones that were taken. Without a name the last one alone is known: another
// one may be of an upload that begins anew.
func (u *upload) taken(c chunk) bool {
	known := u.recent
	if !u.named {
		known = known[max(0, len(known)-1):]
	}
	return slices.ContainsFunc(known, c.again)
}

// start begins the sink of an upload. Nothing of it is seen but new directories, and what a device does when it is opened.
func (r *Room) start(call *builtins.Call, u *upload, in *pb.FileWriteRequest, attr fsys.Attr) (err error) {
	how := followLinks
	how.Parents, how.Plain = in.CreateParents, true // what the file keeps of it is looked at when it takes its name
	c, err := r.begin(call, "file_write", in.Path, how)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.MakeParents(); err != nil {
		return err
	}
	u.made = c.Made
	if in.Separate {
		c.separate()
		u.attr.Separate = true
	}
	if u.sink, err = r.sinkFor(c, in.Path, in.Append, attr); err != nil {
		return err
	}
	u.append, u.named, u.total = in.Append, in.Upload != "", in.TotalChunks
	return nil
}

// followLinks is how the target of an upload is found.
var followLinks = edit.Options{Follow: true}

// merge keeps what a chunk says of attributes: hosts may say it with the first, the last or all.
func (u *upload) merge(attr fsys.Attr) {
	if attr.Mode != nil {
		u.attr.Mode = attr.Mode
	}
	if attr.UID != nil {
		u.attr.UID = attr.UID
	}
	if attr.GID != nil {
		u.attr.GID = attr.GID
	}
}

// take adds a chunk, and puts the whole in its place with the last one.
func (r *Room) take(ctx context.Context, call *builtins.Call, u *upload, c chunk, in *pb.FileWriteRequest) error {
	if _, err := u.sink.Write(in.Data); err != nil {
		return err
	}
	u.recent = append(u.recent[max(0, len(u.recent)-maxRecent+1):], c)
	u.count, u.next = u.count+1, u.next+uint64(len(in.Data))
	if !c.eof {
		return nil
	}
	if err := u.verify(ctx, in.Sha256); err != nil {
		return err
	}
	sink := u.sink
	u.sink = nil // finish is its end either way
	err := sink.finish(ctx, call, u.attr)
	u.finished = err == nil
	return err
}

// verify checks the content that came against a digest in hex; an empty one asks for nothing.
func (u *upload) verify(ctx context.Context, want string) error {
	if want == "" {
		return nil
	}
	sum, err := u.sink.digest(ctx)
	if err == nil && !strings.EqualFold(want, sum) {
		err = fault.Wrapf(fault.ErrCorrupt, "the file that came has another SHA-256, %s", sum)
	}
	return err
}

// discard ends an upload that did not end well, with all it made. Its lock is held.
func (u *upload) discard(root *fsys.Root) (err error) {
	u.dropped = true
	if u.sink != nil {
		err = u.sink.discard()
		u.sink = nil
	}
	if !u.finished {
		root.RemoveEmpty(u.made)
	}
	return err
}

// onlyStages reports whether a chunk is from the middle of an upload: it is written where the first one was, and is not visible
// yet.
func onlyStages(in proto.Message) bool {
	write := in.(*pb.FileWriteRequest)
	return write.Offset > 0 && !write.Eof
}
