package journal

import "github.com/quantix-kvm/guest-agent/wire/pb"

// Info describes a stored transaction, with its reply.
func Info(e *pb.JournalEntry) *pb.TransactionInfo {
	i := info(e.Begin, e)
	i.Reply = e.Reply
	return i
}

// Status tells of the transaction that is open now, nil where there is none, and why none may begin. It does not touch the
// disk.
func (j *Journal) Status() (open *pb.TransactionInfo, err error) {
	j.mu.Lock()
	t, err := j.current, j.broken
	j.mu.Unlock()
	if t == nil {
		return nil, err
	}
	return t.info(), err
}
