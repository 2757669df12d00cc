package journal

import (
	"io"
	"os"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/runtime/journal/internal/frames"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// MachineID returns the guest's machine ID as it is without a transaction that is open: that may have changed it, and be taken
// back. What a former agent left unfinished counts as long as Recover has not ended it: see Refusal.
func (j *Journal) MachineID() string {
	j.mu.Lock()
	t := j.current
	j.mu.Unlock()
	if t != nil && t.mayBeTakenBack() {
		return t.begin.MachineId
	}
	return j.config.MachineID()
}

// Refusal returns why no transaction may begin, were none open: Config.Dir cannot be used, or, of cause fault.ErrBusy, one that
// was interrupted is not taken back yet. Nil: one may.
func (j *Journal) Refusal() error { return j.brokenError() }

// mayBeTakenBack reports whether the transaction has neither committed nor ended.
func (t *Tx) mayBeTakenBack() bool {
	t.status.mu.Lock()
	defer t.status.mu.Unlock()
	return t.status.phase != committed && t.status.phase != closed
}

// machines returns the machine IDs that are this guest's: what it has, and what it has again once a transaction is taken back
// that has not ended.
func (j *Journal) machines() []string {
	ids := append(j.unfinishedMachines(), j.config.MachineID())
	return append(ids, j.unfinishedMachines()...) // one may have begun, or ended, meanwhile
}

// unfinishedMachines returns the machine IDs that transactions which have not ended began with.
func (j *Journal) unfinishedMachines() (ids []string) {
	j.mu.Lock()
	t, broken := j.current, j.broken
	j.mu.Unlock()
	if t != nil {
		ids = append(ids, t.begin.MachineId)
	}
	if broken == nil {
		return ids
	}
	names, _ := os.ReadDir(j.dir("open")) // without it there is none
	for _, name := range names {
		if begin := j.readBegin(name.Name()); begin != nil {
			ids = append(ids, begin.MachineId)
		}
	}
	return ids
}

// readBegin returns the first record of a transaction that has not ended; nil where it cannot be read: then it is not taken
// back.
func (j *Journal) readBegin(id string) *pb.JournalBegin {
	file, err := os.Open(j.dir("open", id, "journal"))
	if err != nil {
		return nil
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil
	}
	payload, err := frames.ReadFirst(id, io.NewSectionReader(file, 0, info.Size()))
	record := &pb.JournalRecord{}
	if err != nil || proto.Unmarshal(payload, record) != nil {
		return nil
	}
	return record.GetBegin()
}

// isOf reports whether an entry is one of a guest with one of these machine IDs.
func (e *storedEntry) isOf(machines []string) bool {
	return slices.Contains(machines, e.Begin.MachineId) || e.MachineIdAfter != nil && slices.Contains(machines, *e.MachineIdAfter)
}

// changedTo returns the machine ID that a transaction which committed leaves, unless it began with the same.
func changedTo(begin *pb.JournalBegin, id string) *string {
	if id == begin.GetMachineId() {
		return nil
	}
	return &id
}

// machineAfter returns what newEntry notes of a commit that an earlier agent wrote. In another boot the guest may be a clone:
// what was then counts.
func (j *Journal) machineAfter(begin *pb.JournalBegin, commit *pb.JournalCommit) *string {
	switch {
	case j.thisBoot(commit.BootId):
		return changedTo(begin, j.config.MachineID())
	case commit.MachineId == nil: // of an older agent
		return nil
	}
	return changedTo(begin, *commit.MachineId)
}

// tellMachine reports another machine ID that a transaction left.
func (j *Journal) tellMachine(entry *pb.JournalEntry) error {
	if entry.MachineIdAfter == nil || j.config.MachineChanged == nil {
		return nil
	}
	return j.config.MachineChanged(entry.Begin, *entry.MachineIdAfter)
}
