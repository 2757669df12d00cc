package journal

import (
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Info returns the description of a stored transaction, with its reply.
func Info(e *pb.JournalEntry) *pb.TransactionInfo {
	i := info(e.Begin, e)
	i.Reply = e.Reply
	return i
}

// Status returns the transaction that is open, or whose rollback has not ended, the error that keeps others from beginning, and
// the directories in kept as they were when the last transaction began or ended. It does not read the disk.
func (j *Journal) Status() *pb.JournalStatus {
	j.mu.Lock()
	t, err, s := j.current, j.broken, &pb.JournalStatus{Kept: j.kept}
	if unfinished := j.unfinishedInfos(); len(unfinished) > 0 {
		s.Open = unfinished[0]
	}
	j.mu.Unlock()
	if err != nil {
		s.Error = err.Error()
	}
	if t != nil {
		s.Open = t.info()
	}
	return s
}
