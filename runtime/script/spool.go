package script

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The files that come with a script are in the memory that all hosts share for their requests. A script may wait or run for
// hours, so they go to the disk meanwhile:
//
//	request ─► spool: a file without a name ─► file.attachment
//
// Where that cannot be, as on a full disk, they stay in memory.

const (
	minSpooled = 256 << 10              // bytes of attachments that are worth it
	maxSpooled = 128 << 20              // bytes of all spools together
	enterTime  = 100 * time.Millisecond // how long a thaw is waited for: a script that only reads may run in a freeze
)

// spool is the attachments of one run.
type spool struct {
	file *os.File
	at   map[string]span
}

// span is where the content of an attachment lies in the spool.
type span struct{ offset, size int64 }

// spoolAttachments moves large attachments to the disk until done is called.
func (r *run) spoolAttachments() (done func()) {
	size := int64(0)
	for _, a := range r.request.Attachments {
		size += int64(len(a.Data))
	}
	m := r.manager
	if r.call.ReleaseRequest == nil || m.config.Spool == "" || size < minSpooled || !m.reserveSpool(size) {
		return func() {}
	}
	s, err := r.writeSpool()
	if err != nil {
		m.reserveSpool(-size)
		return func() {}
	}
	r.spool = s
	r.releaseAttachments()
	return func() {
		s.close()
		m.reserveSpool(-size)
	}
}

// reserveSpool takes so many bytes of what spools may have together, and reports whether there were so many; it gives back less
// than none.
func (m *Manager) reserveSpool(n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n > 0 && m.spooled+n > maxSpooled {
		return false
	}
	m.spooled += n
	return true
}

// writeSpool makes a spool of the attachments.
func (r *run) writeSpool() (*spool, error) {
	if enter := r.manager.config.Enter; enter != nil {
		ctx, cancel := context.WithTimeout(context.Background(), enterTime)
		defer cancel()
		leave, err := enter(ctx)
		if err != nil {
			return nil, err
		}
		defer leave()
	}
	dir := r.manager.config.Spool
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	file, err := os.CreateTemp(dir, "attachments-")
	if err != nil {
		return nil, err
	}
	s := &spool{file: file, at: map[string]span{}}
	_ = os.Remove(file.Name()) // Windows removes it when it is closed
	end := int64(0)
	for _, a := range r.request.Attachments {
		if _, err := file.WriteAt(a.Data, end); err != nil {
			s.close()
			return nil, err
		}
		s.at[a.Name] = span{end, int64(len(a.Data))}
		end += int64(len(a.Data))
	}
	return s, nil
}

func (s *spool) close() {
	_ = s.file.Close()
	_ = os.Remove(s.file.Name())
}

// releaseAttachments gives back the memory of the attachments, of which the request keeps the names.
func (r *run) releaseAttachments() {
	if r.call.ReleaseRequest == nil {
		return
	}
	for _, a := range r.request.Attachments {
		a.Data = nil
	}
	r.request.Source = bytes.Clone(r.request.Source) // what is left may lie in the request's bytes
	for name, source := range r.request.Modules {
		r.request.Modules[name] = bytes.Clone(source)
	}
	r.call.ReleaseRequest(proto.Size(r.request))
}

// attachment returns the content of an attachment.
func (r *run) attachment(name string) ([]byte, error) {
	for _, a := range r.request.Attachments {
		if a.Name != name {
			continue
		}
		if r.spool == nil {
			return a.Data, nil
		}
		at := r.spool.at[name]
		content := make([]byte, at.size)
		if _, err := r.spool.file.ReadAt(content, at.offset); err != nil && err != io.EOF {
			return nil, fault.Cause(err)
		}
		return content, nil
	}
	return nil, fs.ErrNotExist
}

// content is that of an attachment; nil where it cannot be read.
func (r *run) content(a *pb.Attachment) []byte {
	content, _ := r.attachment(a.Name)
	return content
}
