package journal

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// Limits of a reply. All together are far below the 16 MiB of a message; the result has its limit in the sandbox.
const (
	maxReplyText = 16 << 10  // bytes of each text that has no limit of its own
	maxTarget    = 4 << 10   // bytes of what a change is about: the longest path, or the beginning of a command line
	maxDiff      = 64 << 10  // bytes of a diff
	maxDiffs     = 512 << 10 // bytes of all diffs
	maxLogLines  = 10_000
	maxLogBytes  = 256 << 10
	maxChanges   = 1 << 20   // bytes of the changes, without diffs
	maxOthers    = 256 << 10 // bytes of each of the other lists of changes
)

// LimitReply cuts each field of a reply to its limit, in place: a reply that can be stored can be sent, too. What is
// over a limit is counted in the reply. Another call cuts nothing more.
func LimitReply(reply *pb.RunScriptResponse) {
	if reply == nil {
		return
	}
	limitTexts(reply.ProtoReflect())
	limitLog(reply)
	diffs := maxDiffs
	for _, list := range []struct {
		changes *[]*pb.Change
		bytes   int
	}{{&reply.NotUndone, maxOthers}, {&reply.Changes, maxChanges}, {&reply.AfterCommit, maxOthers},
		{&reply.RollbackRan, maxOthers}} {
		kept := limitChanges(*list.changes, list.bytes, &diffs)
		reply.ChangesDropped += uint32(len(*list.changes) - kept)
		*list.changes = (*list.changes)[:kept:kept]
	}
}

// limitTexts cuts every text of a message but the result, for which the script gets an error.
func limitTexts(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Name() == "result" || field.IsMap():
		case field.Name() == "diff": // a part of a diff is none: limitChanges drops it whole
		case field.IsList() && field.Message() != nil:
			for i := range value.List().Len() {
				limitTexts(value.List().Get(i).Message())
			}
		case field.IsList():
		case field.Message() != nil:
			limitTexts(value.Message())
		case field.Kind() == protoreflect.StringKind:
			limit := maxReplyText
			if field.Name() == "target" {
				limit = maxTarget
			}
			if s := value.String(); len(s) > limit {
				m.Set(field, protoreflect.ValueOfString(cutText(s, limit)))
			}
		}
		return true
	})
}

// cutText cuts a text to at most limit bytes, with its length at the end.
func cutText(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	end := fmt.Sprintf(" (%d bytes)", len(s))
	return text.Truncate(s, limit-len(end)) + end
}

func limitLog(reply *pb.RunScriptResponse) {
	size := 0
	for i, line := range reply.Log {
		if size += len(line.Message); i >= maxLogLines || size > maxLogBytes {
			reply.LogDropped += uint32(len(reply.Log) - i)
			reply.Log = reply.Log[:i:i]
			return
		}
	}
}

// limitChanges drops diffs that are too long, and returns how many of the changes fit. diffs is what is left for them.
func limitChanges(changes []*pb.Change, limit int, diffs *int) (kept int) {
	for i, change := range changes {
		if len(change.Diff) > min(maxDiff, *diffs) {
			change.Diff, change.DiffTruncated = "", true
		}
		if limit -= proto.Size(change) - len(change.Diff); limit < 0 {
			return i
		}
		*diffs -= len(change.Diff)
	}
	return len(changes)
}

// shortReply returns the part of a reply that is kept when there is no space for the whole one: at most some 40 KiB,
// which fit into the space reserved for the last record.
func shortReply(reply *pb.RunScriptResponse) *pb.RunScriptResponse {
	if reply == nil {
		return nil
	}
	short := &pb.RunScriptResponse{
		Status: reply.Status, Stats: reply.Stats, TransactionId: reply.TransactionId, Shortened: true,
		LogDropped: reply.LogDropped + uint32(len(reply.Log)),
		ChangesDropped: reply.ChangesDropped +
			uint32(len(reply.Changes)+len(reply.NotUndone)+len(reply.AfterCommit)+len(reply.RollbackRan)),
	}
	if s := reply.Script; s != nil {
		short.Script = &pb.ScriptRef{
			Name: truncateText(s.Name), Version: truncateText(s.Version), Sha256: truncateText(s.Sha256),
		}
	}
	if e := reply.Error; e != nil {
		short.Error = &pb.ScriptError{Kind: truncateText(e.Kind), Message: truncateText(e.Message), Line: e.Line,
			Op: truncateText(e.Op), Code: truncateText(e.Code)}
	}
	for _, change := range reply.NotUndone[:min(len(reply.NotUndone), 8)] {
		short.NotUndone = append(short.NotUndone, &pb.Change{
			Op: truncateText(change.Op), Target: truncateText(change.Target), Action: truncateText(change.Action),
			State: change.State,
		})
		short.ChangesDropped--
	}
	return short
}

func truncateText(s string) string { return cutText(s, 1024) }
