package journal

import "github.com/quantix-kvm/guest-agent/wire/pb"

// Info describes a stored transaction, with its reply.
func Info(e *pb.JournalEntry) *pb.TransactionInfo {
	i := info(e.Begin, e)
	i.Reply = e.Reply
	return i
}
