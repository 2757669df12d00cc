package journal

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// maxPage bounds a page of List in bytes, so that it can be sent.
const maxPage = 1 << 20

// List returns at most n transactions of the ports that sees reports true for, newest first by their ids and those that have
// not ended among them: those older than the one with the id after, or the newest if after is empty. next is the id to continue
// with; empty at the end.
func (j *Journal) List(after string, n int, sees func(port string) bool) (list []*pb.TransactionInfo, next string, err error) {
	if after != "" && idTime(after) == 0 {
		return nil, "", fault.Invalid("%q is not the token of a page", after)
	}
	j.mu.Lock()
	t, unfinished := j.current, j.unfinishedInfos()
	j.mu.Unlock()
	j.store.mu.Lock()
	if err := j.loadStore(); err != nil {
		j.store.mu.Unlock()
		return nil, "", err
	}
	j.trim()
	entries := slices.Clone(j.store.entries)
	j.store.mu.Unlock()
	if t != nil {
		unfinished = append(unfinished, t.info())
	}
	known := map[string]*pb.TransactionInfo{} // nil: it is made of the entry
	for _, i := range unfinished {
		known[i.TransactionId] = i
	}
	ended := map[string]*storedEntry{}
	for _, e := range entries { // one that has ended meanwhile counts as such
		known[e.id()], ended[e.id()] = nil, e
	}
	size := 0
	for _, id := range slices.Backward(slices.Sorted(maps.Keys(known))) {
		i := known[id]
		if after != "" && id >= after || i != nil && !sees(i.Port) || i == nil && !sees(ended[id].Begin.Port) {
			continue
		}
		if len(list) >= n || size > maxPage {
			return list, list[len(list)-1].TransactionId, nil
		}
		if i == nil {
			i = info(ended[id].Begin, ended[id].JournalEntry)
		}
		list = append(list, i)
		size += proto.Size(i)
	}
	return list, "", nil
}

func info(b *pb.JournalBegin, e *pb.JournalEntry) *pb.TransactionInfo {
	return &pb.TransactionInfo{
		TransactionId: b.TransactionId, Status: e.GetReply().GetStatus(), Script: b.Script, Key: b.Key, MessageId: b.MessageId,
		Started: b.Started, Port: b.Port, Finished: e.GetFinished(), Phase: e.GetPhase(), Changes: e.GetChanges(),
	}
}

// phaseNames are the phases in which a transaction is described by another word than rolling_back.
var phaseNames = map[phase]string{running: "running", awaiting: "awaiting_confirm", committed: "done"}

func (t *Tx) info() *pb.TransactionInfo {
	t.status.mu.Lock()
	defer t.status.mu.Unlock()
	i := info(t.begin, nil)
	i.Phase = phaseNames[t.status.phase]
	if i.Phase == "" {
		i.Phase = "rolling_back"
	}
	if t.status.phase == awaiting {
		i.Status, i.Changes = t.status.reply.GetStatus(), uint32(len(t.status.reply.GetChanges()))
		left := max(t.journal.Remaining(t.status.until), 0)
		i.ConfirmUntil, i.ConfirmRemainingMs = timestamppb.New(time.Now().Add(left)), uint64(left.Milliseconds())
	}
	i.JournalBytes = uint64(t.status.bytes)
	return i
}
