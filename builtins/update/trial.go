package update

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Files of the state directory.
const (
	trialFile   = "update-trial.json"
	outcomeFile = "update-last.json"
	// transferFile says where a program is being put together, so that the next agent removes what a crash leaves: another
	// agent of the same program, with a state directory of its own, does not.
	transferFile = "update-transfer.json"
)

// trialFormat is the version of the note of a trial.
const trialFormat = 1

// maxNote bounds what is read of a note, in bytes.
const maxNote = 64 << 10

// MaxStarts is how often a program is started that never becomes ready, or hears no host, before the former one runs.
const MaxStarts = 3

// Trial returns the update that is on trial, as it is noted in a state directory; nil: none is.
func Trial(state string) (*pb.UpdateTrial, error) {
	t := &pb.UpdateTrial{}
	found, err := readNote(state, trialFile, t)
	switch {
	case err != nil || !found:
		return nil, err
	case t.Format != trialFormat:
		return nil, fault.Unsupported("%s has format %d, this agent reads %d", trialFile, t.Format, trialFormat)
	}
	return t, nil
}

// Next decides what runs when an agent is started, of which own is the program. It returns the program of an update that is to
// run in its place, with the start noted; empty: own is the one to run. trial is then the update that own is the new program
// of; nil: it is none. An error is why an update is not tried any more, or why what is noted of one cannot be read; own runs
// then.
func Next(state, own string, step func(string)) (program string, trial *pb.UpdateTrial, err error) {
	t, err := Trial(state)
	if err != nil || t == nil {
		return "", nil, err
	}
	if t.Failed != "" {
		return "", nil, nil
	}
	if own == t.Staged {
		return "", t, nil
	}
	switch _, err := os.Lstat(t.Staged); {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil, nil // it is in its place, and not settled
	case t.Starts >= MaxStarts:
		return "", nil, giveUp(state, t, fault.Wrapf(fault.ErrInternal, "it was started %d times and no host was heard", t.Starts))
	}
	if err := checkStaged(t); err != nil {
		return "", nil, giveUp(state, t, err)
	}
	t.Starts++
	step("next.count")
	if err := writeNote(state, trialFile, t); err != nil {
		return "", nil, err
	}
	step("next.run")
	return t.Staged, t, nil
}

// checkStaged looks whether the file that is about to run is the one that was verified.
func checkStaged(t *pb.UpdateTrial) error {
	if t.Staged != filepath.Join(stagePath(t.Target), programName) {
		return fault.Wrapf(fault.ErrCorrupt, "%s is not where updates are", t.Staged)
	}
	if err := checkParents(filepath.Dir(filepath.Dir(t.Staged))); err != nil {
		return err
	}
	if err := checkStage(filepath.Dir(t.Staged)); err != nil {
		return err
	}
	info, err := os.Lstat(t.Staged)
	if err == nil && !info.Mode().IsRegular() {
		err = fault.Refuse("%s is no file", t.Staged)
	}
	if err == nil {
		err = checkOwner(t.Staged, info)
	}
	if err != nil {
		return err
	}
	return checkSum(t.Staged, t.Sha256)
}

// checkSum returns an error unless a file has that SHA-256.
func checkSum(path, want string) error {
	file, err := os.Open(path)
	if err != nil {
		return fault.Cause(err)
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return fault.Cause(err)
	}
	if hex.EncodeToString(hash.Sum(nil)) != want {
		return fault.Wrapf(fault.ErrCorrupt, "%s is not the file that was verified", path)
	}
	return nil
}

// giveUp notes why a trial is over, and returns that.
func giveUp(state string, t *pb.UpdateTrial, why error) error {
	t.Failed = why.Error()
	return errors.Join(why, writeNote(state, trialFile, t))
}

// settleWait is how long Confirm and Abandon wait for one another. Both take moments, unless the process hangs that confirms.
const settleWait = 10 * time.Second

// Abandon notes that an update is not to be started any more. It returns false where that was noted before, or the update has
// been confirmed. A confirmation that is under way is waited for, and counts; one that hangs does not.
func Abandon(state, id, why string) (bool, error) {
	t, err := Trial(state)
	if err != nil || t == nil || t.Id != id || t.Failed != "" {
		return false, err
	}
	if unlock, err := lockStage(filepath.Dir(t.Staged), settleWait); err == nil {
		defer unlock()
		if t, err = Trial(state); err != nil || t == nil || t.Id != id || t.Failed != "" {
			return false, err
		}
	}
	if _, err := os.Lstat(t.Staged); err != nil {
		return false, nil
	}
	t.Failed = why
	return true, writeNote(state, trialFile, t)
}

// noteTrial notes a program that is verified, so that the next start is of that.
func (r *Room) noteTrial(t *transfer) error {
	trial := &pb.UpdateTrial{
		Format: trialFormat, Version: t.version, FormerVersion: r.config.Version, Sha256: t.sum,
		Staged: filepath.Join(t.stage.path, programName), Target: t.target, Former: r.config.Program,
		ConfirmMs: uint64(r.config.Confirm.Milliseconds()), Id: rand.Text(),
	}
	r.config.Step("trial.note")
	if err := writeNote(r.config.State, trialFile, trial); err != nil {
		// A note that was written and is not durable must not come true later.
		return errors.Join(err, removeNote(r.config.State, trialFile))
	}
	_ = t.stage.close()
	return nil
}

// Confirm makes the program of this process the installed one, since a host was heard. It may be called again after an error.
// Where the update was given up before, by Abandon of any process, it fails and changes nothing.
func (r *Room) Confirm() error {
	r.turn.Lock()
	defer r.turn.Unlock()
	t := r.config.Trial
	if t == nil || r.Status().State != applying {
		return nil
	}
	unlock, err := lockStage(filepath.Dir(t.Staged), settleWait)
	if err != nil {
		return fault.On(filepath.Dir(t.Staged), err)
	}
	defer unlock()
	step := r.config.Step
	if _, err := os.Lstat(t.Staged); err == nil { // else the new program is installed already, by a call that failed later
		switch noted, err := Trial(r.config.State); {
		case err != nil:
			return err
		case noted.GetId() == t.Id && noted.GetFailed() != "":
			return fault.Refuse("the update was given up: %s", noted.GetFailed())
		}
		step("confirm.backup")
		if err := keepFormer(t.Target); err != nil {
			return fault.On(t.Target+backupSuffix, err)
		}
	}
	step("confirm.rename")
	err = os.Rename(t.Staged, t.Target)
	if errors.Is(err, fs.ErrNotExist) { // it was renamed before, or somebody has removed it
		err = checkSum(t.Target, t.Sha256)
	}
	if err != nil {
		return fault.On(t.Target, fault.Cause(err))
	}
	step("confirm.sync")
	if err := syncDir(filepath.Dir(t.Target)); err != nil {
		return fault.On(t.Target, fault.Cause(err))
	}
	if err := r.conclude(t, ""); err != nil {
		return err
	}
	r.set(idle)
	return nil
}

// backupSuffix is what the name of the former program ends with that is kept.
const backupSuffix = ".bak"

// keepFormer gives the installed program a second name. Where none is installed there is none.
func keepFormer(target string) error {
	temp := target + backupSuffix + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Cause(err)
	}
	err := os.Link(target, temp)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.Rename(temp, target+backupSuffix)
	}
	// Two names of one file are not renamed over each other: the link stays.
	if err == nil {
		if err = os.Remove(temp); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return fault.Cause(err)
}

// GiveUp notes that no host was heard in time: the next start is of the former program.
func (r *Room) GiveUp(why error) error {
	r.turn.Lock()
	defer r.turn.Unlock()
	if r.config.Trial == nil || r.Status().State != applying {
		return nil
	}
	r.set(rollingBack)
	r.config.Step("giveup.note")
	_, err := Abandon(r.config.State, r.config.Trial.Id, why.Error())
	return err
}

// settle ends what an earlier process began: a trial that failed, or that was confirmed and not noted so.
func (r *Room) settle() {
	if r.guest == nil || !r.guest.Live || supported() != nil {
		return
	}
	if r.config.Trial != nil {
		r.set(applying)
		return
	}
	err := r.settleTrial()
	last := &pb.UpdateOutcome{}
	found, e := readNote(r.config.State, outcomeFile, last)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trouble = errors.Join(err, e); found {
		r.last = last
	}
}

func (r *Room) settleTrial() error {
	t, err := Trial(r.config.State)
	if err != nil {
		return err // it may be a newer agent's: it stays
	}
	if t == nil {
		return r.settleTransfer()
	}
	why := cmp.Or(t.Failed, "it was not started")
	if _, err := os.Lstat(t.Staged); errors.Is(err, fs.ErrNotExist) {
		if checkSum(t.Target, t.Sha256) == nil { // what is installed counts, and not a note that came too late
			return r.conclude(t, "")
		}
		why = cmp.Or(t.Failed, "its program was removed")
	}
	return r.conclude(t, why)
}

// settleTransfer removes what a transfer left that was interrupted.
func (r *Room) settleTransfer() error {
	t := &pb.UpdateTrial{}
	found, err := readNote(r.config.State, transferFile, t)
	if err != nil || !found {
		return err
	}
	if err := removeStage(t.Target); err != nil {
		return err
	}
	return removeNote(r.config.State, transferFile)
}

// conclude notes what became of an update, and forgets it. failed is empty for one that is installed.
func (r *Room) conclude(t *pb.UpdateTrial, failed string) error {
	last := &pb.UpdateOutcome{
		Version: t.Version, FormerVersion: t.FormerVersion, Confirmed: failed == "", Error: failed, At: timestamppb.New(time.Now()),
	}
	r.config.Step("conclude.note")
	if err := writeNote(r.config.State, outcomeFile, last); err != nil {
		return err
	}
	r.config.Step("conclude.clean")
	if err := removeStage(t.Target); err != nil {
		return err
	}
	r.config.Step("conclude.forget")
	if err := errors.Join(removeNote(r.config.State, transferFile), removeNote(r.config.State, trialFile)); err != nil {
		return err
	}
	r.mu.Lock()
	r.last = last
	r.mu.Unlock()
	return nil
}

// confirmTime is how long a host is awaited after a start.
func confirmTime(t *pb.UpdateTrial) time.Duration {
	return time.Duration(t.ConfirmMs) * time.Millisecond
}

// readNote reads a note; found is false where there is none.
func readNote(dir, name string, into proto.Message) (found bool, err error) {
	file, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fault.Cause(err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxNote))
	if err != nil {
		return false, fault.Cause(err)
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, into); err != nil {
		return false, fault.Wrapf(fault.ErrCorrupt, "%s: %v", name, err)
	}
	return true, nil
}

// writeNote replaces a note, durably.
func writeNote(dir, name string, note proto.Message) error {
	text, err := protojson.Marshal(note)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, name)
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Cause(err)
	}
	file, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fault.Cause(err)
	}
	_, err = file.Write(append(text, '\n'))
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	return fault.Cause(err)
}

// removeNote removes a note, durably.
func removeNote(dir, name string) error {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Cause(err)
	}
	return fault.Cause(syncDir(dir))
}
