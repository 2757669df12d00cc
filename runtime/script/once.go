package script

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"math"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// fingerprint distinguishes one request from another under the same key. It is over a canonical form, since the encoding of a
// map differs from call to call, and keyed, since it is stored and secrets are part of it. What a script is by its name
// is no part of the request: the script may have changed or removed itself when the request comes again.
func fingerprint(key []byte, request *pb.RunScriptRequest) []byte {
	c := canonical{hmac.New(sha256.New, key)}
	c.text("request")
	c.text(request.Name)
	c.text(sentDigest(request))
	return c.rest(request, (*pb.Attachment).GetData)
}

// formerFingerprint returns the fingerprint that agents before 0.3 stored: it had the digest of a script that was
// named.
func formerFingerprint(key []byte, request *pb.RunScriptRequest, digest string, content func(*pb.Attachment) []byte) []byte {
	c := canonical{hmac.New(sha256.New, key)}
	c.text(scriptName(request))
	c.text(digest)
	return c.rest(request, content)
}

// sentDigest returns the digest of the source in a request; empty: it names a script.
func sentDigest(request *pb.RunScriptRequest) string {
	if len(request.Source) == 0 {
		return ""
	}
	return digest(request.Source)
}

// rest adds what else distinguishes a request from another, and returns the sum. content returns that of an attachment.
func (c canonical) rest(request *pb.RunScriptRequest, content func(*pb.Attachment) []byte) []byte {
	c.structure(request.Params)
	pairs(c, request.Secrets, func(v string) { c.text(v) })
	c.number(uint64(len(request.Attachments)))
	for _, a := range request.Attachments {
		c.text(a.Name)
		c.bytes(content(a))
	}
	pairs(c, request.Modules, c.bytes)
	c.number(uint64(request.MemoryLimitBytes))
	c.number(uint64(len(request.Allow)))
	for _, a := range request.Allow {
		c.text(a)
	}
	return c.h.Sum(nil)
}

// canonical writes values so that no two different ones look the same.
type canonical struct{ h hash.Hash }

func (c canonical) number(n uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	c.h.Write(b[:])
}

func (c canonical) text(s string) { c.bytes([]byte(s)) }

func (c canonical) bytes(b []byte) {
	c.number(uint64(len(b)))
	c.h.Write(b)
}

func pairs[V any](c canonical, m map[string]V, value func(V)) {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	c.number(uint64(len(names)))
	for _, name := range names {
		c.text(name)
		value(m[name])
	}
}

func (c canonical) structure(s *structpb.Struct) { pairs(c, s.GetFields(), c.value) }

func (c canonical) value(v *structpb.Value) {
	switch kind := v.GetKind().(type) {
	case *structpb.Value_NumberValue:
		c.text("n")
		c.number(math.Float64bits(kind.NumberValue))
	case *structpb.Value_StringValue:
		c.text("s")
		c.text(kind.StringValue)
	case *structpb.Value_BoolValue:
		if kind.BoolValue {
			c.text("t")
		} else {
			c.text("f")
		}
	case *structpb.Value_StructValue:
		c.text("m")
		c.structure(kind.StructValue)
	case *structpb.Value_ListValue:
		c.text("l")
		c.number(uint64(len(kind.ListValue.GetValues())))
		for _, element := range kind.ListValue.GetValues() {
			c.value(element)
		}
	default:
		c.text("0")
	}
}

// earlier returns the reply of a run under the same key: of one that still runs, which it waits for, or of one whose
// end is stored. Nil: the script is to be run. Otherwise r is entered as the run under its key, and leave must be
// called.
func (r *run) earlier(ctx context.Context) (reply *pb.RunScriptResponse, leave func()) {
	m := r.manager
	m.mu.Lock()
	other := m.keys[r.key]
	if other == nil {
		m.keys[r.key] = r
	}
	m.mu.Unlock()
	if other != nil {
		return r.attach(ctx, other), nil
	}
	leave = func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.keys, r.key)
		close(r.ended)
	}
	if stored := r.storedReply(); stored != nil {
		leave()
		return stored, nil
	}
	return nil, leave
}

// replay returns a stored reply if it counts for this request: after a rollback, only for the same message id.
func (r *run) replay(stored *pb.JournalEntry) *pb.RunScriptResponse {
	reply := stored.GetReply()
	switch {
	case reply == nil:
		return nil
	case !r.sameRequest(stored.Begin) || !r.call.MaySee(stored.Begin.GetPort()):
		return conflict()
	case !kept[reply.Status] && stored.Begin.GetMessageId() != r.call.ID:
		return nil
	}
	if refusal := unexpected(r.request, stored.Begin.GetScript().GetSha256()); refusal != nil {
		return refusal
	}
	reply.Replayed = true
	return reply
}

// kept are the outcomes that every request under the key gets again: the script does not run a second time.
var kept = map[pb.ScriptStatus]bool{
	pb.ScriptStatus_SCRIPT_STATUS_COMMITTED: true, pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM: true,
}

// sameRequest reports whether a transaction was begun by a request like this one.
func (r *run) sameRequest(begin *pb.JournalBegin) bool {
	if hmac.Equal(begin.GetFingerprint(), r.print) {
		return true
	}
	digest := sentDigest(r.request)
	if digest == "" {
		digest = begin.GetScript().GetSha256()
	}
	return hmac.Equal(begin.GetFingerprint(), formerFingerprint(r.manager.config.Secret(), r.request, digest, r.content))
}

func conflict() *pb.RunScriptResponse {
	return refused("key_conflict", "another request was made under this key")
}

// attach waits for a run that is under way.
func (r *run) attach(ctx context.Context, other *run) *pb.RunScriptResponse {
	if !hmac.Equal(other.print, r.print) || !r.call.MaySee(other.call.Port) {
		return conflict()
	}
	r.releaseAttachments() // the other one has them
	select {
	case <-other.ended:
		if other.reply == nil {
			return refused("internal", "the run that this one waited for gave no reply")
		}
		reply := proto.Clone(other.reply).(*pb.RunScriptResponse)
		reply.Replayed = true
		return reply
	case <-ctx.Done():
		return refused(builtins.ErrorKind(context.Cause(ctx)), "the run under this key goes on; the wait for it ended: "+context.Cause(ctx).Error())
	}
}
