package journal

import (
	"os"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Info describes a stored transaction, with its reply.
func Info(e *pb.JournalEntry) *pb.TransactionInfo {
	i := info(e.Begin, e)
	i.Reply = e.Reply
	return i
}

// Status tells of the transaction that is open now, why none may begin, and what was kept when the last one began or
// ended. It does not touch the disk.
func (j *Journal) Status() *pb.JournalStatus {
	j.mu.Lock()
	t, err, s := j.current, j.broken, &pb.JournalStatus{Kept: j.kept}
	j.mu.Unlock()
	if err != nil {
		s.Error = err.Error()
	}
	if t != nil {
		s.Open = t.info()
	}
	return s
}

// lookKept sees what is kept for people; they may have removed some of it.
func (j *Journal) lookKept() error {
	entries, err := os.ReadDir(j.dir("kept"))
	var kept []string
	for _, e := range entries {
		kept = append(kept, j.dir("kept", e.Name()))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.kept = kept
	return err
}
