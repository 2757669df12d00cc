package core

import (
	"cmp"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// prepareState makes the state directory and what the core has in it beside the journal.
func (core *Core) prepareState(c Config) error {
	if err := core.awaitMount(c); err != nil {
		left, e := core.fstabIsLeft(c)
		if e != nil || !left {
			return errors.Join(err, e)
		}
	}
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return fault.Wrapf(err, "make the state directory (choose another with --state): %v", err)
	}
	if err := checkOwners(c.State, c.Root); err != nil { // it may be new, and what leads to it another's
		return err
	}
	if c.Pool != nil {
		if err := os.RemoveAll(c.overlays()); err != nil { // those of an agent that was killed
			return fault.Cause(err)
		}
		_ = os.Mkdir(c.overlays(), 0o700) // without it what would be in there is in memory
	}
	key := c.Key
	if key == nil { // whose it is counts once the machine's ID is no more that of a script which is taken back
		content, err := os.ReadFile(c.keyFile())
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fault.Cause(err)
		}
		if len(content) >= keyLength {
			key = content[:keyLength]
		}
	}
	core.setKey(key)
	return nil
}

// ready is called when what an earlier agent left has been taken back.
func (core *Core) ready(c Config) error {
	if err := core.awaitMount(c); err != nil || c.Key != nil {
		return err
	}
	key, err := readKey(c.State, c.MachineID())
	if err == nil {
		core.setKey(key)
	}
	return err
}

func (core *Core) setKey(key []byte) {
	if key != nil {
		core.key.Store(&key)
	}
}

// awaitMount returns an error while what fstab mounts at, or above, the state directory is not mounted.
func (core *Core) awaitMount(c Config) error {
	fstab, err := os.ReadFile(fstabFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Cause(err)
	}
	if point := unmounted(string(fstab), c.State, isMountPoint); point != "" {
		return fault.Wrapf(fs.ErrNotExist, "waiting for %s, which %s mounts", point, fstabFile)
	}
	return nil
}

// fstabFile says what is mounted at each boot.
const fstabFile = "/etc/fstab"

// fstabIsLeft reports whether a script that was interrupted had changed fstab, and what takes that back lies in the state directory
// as it is now. What fstab mounts there is then not to be waited for before that is done: it may be the script's own line.
func (core *Core) fstabIsLeft(c Config) (bool, error) {
	if filepath.Clean(c.Root) != "/" {
		return false, nil
	}
	resolved, err := core.Files.Resolve(fstabFile, true)
	if err != nil {
		return false, fault.On(fstabFile, err)
	}
	return journal.UnfinishedOwns(c.journalDir(), fstabFile, resolved)
}

// keyFile is the file of the key.
func (c Config) keyFile() string { return filepath.Join(c.State, keyName) }

// journalDir is the directory of the journal.
func (c Config) journalDir() string { return filepath.Join(c.State, "tx") }

// overlays is the directory for the overlays of dry runs, and for files without names.
func (c Config) overlays() string { return filepath.Join(c.State, "overlays") }

// secret keys the fingerprints of requests, and the marks of commands. Without a state directory none is stored, and so any
// value will do.
func (core *Core) secret() []byte {
	if key := core.key.Load(); key != nil {
		return *key
	}
	return nil
}

// unmounted returns the mount point of fstab(5) that a directory is below and that nothing is mounted on: what is there then
// is not the state directory, and may even be empty; "" if there is none. What is mounted by hand alone is not waited for. A
// line needs three fields: mount(8) takes the rest as defaults.
func unmounted(fstab, dir string, mounted func(point string) bool) string {
	for line := range strings.Lines(fstab) {
		fields := strings.Fields(line)
		if len(fields) < 3 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) > 3 && slices.Contains(strings.Split(fields[3], ","), "noauto") {
			continue
		}
		point := fsys.UnescapeMount(fields[1])
		if filepath.IsAbs(point) && point != "/" && fsys.Within(dir, filepath.Clean(point)) && !mounted(point) {
			return point
		}
	}
	return ""
}

// isMountPoint reports whether a file system is mounted on a directory of the agent's own file system.
func isMountPoint(point string) bool {
	files, err := fsys.Open("/")
	if err != nil {
		return false
	}
	defer files.Close()
	meta, err := files.Identify(point)
	return err == nil && meta.Mounted
}

// keyLength is the length of the key in bytes. In its file the machine's ID follows, or unknownMachine.
const (
	keyName        = "key"
	keyLength      = 32
	unknownMachine = "-"
)

// machineChanged follows a script that changed the machine ID: the guest is the same one, and keeps its key.
func (c Config) machineChanged(begin *pb.JournalBegin, to string) error {
	from := begin.GetMachineId()
	if c.Key == nil && to != "" { // else it stays as it is
		content, err := os.ReadFile(c.keyFile())
		if err == nil && len(content) > keyLength && string(content[keyLength:]) == cmp.Or(from, unknownMachine) {
			err = writeKey(c.State, content[:keyLength], to)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fault.Cause(err)
		}
	}
	if c.MachineChanged == nil {
		return nil
	}
	return c.MachineChanged(begin.GetKey(), from, to)
}

// readKey reads the random key of a state directory. Where there is none, or it is of another machine, which this one is a
// copy of, it makes one that stays the same as long as the directory and the machine do. An empty ID is one that is not
// known, as in an image: the machines that come of it make their own.
func readKey(dir, machine string) ([]byte, error) {
	path := filepath.Join(dir, keyName)
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	key := make([]byte, keyLength)
	switch copied := copy(key, content); {
	case copied < keyLength:
		rand.Read(key)
	case len(content) == keyLength: // of an agent that did not write whose it is
	case machine == "", string(content[keyLength:]) == machine:
		return key, nil
	default:
		rand.Read(key)
	}
	return key, writeKey(dir, key, machine)
}

// writeKey writes the key of a machine.
func writeKey(dir string, key []byte, machine string) error {
	path := filepath.Join(dir, keyName)
	next := path + ".new" // always this one, so that of those whom a kill interrupts one is left at most
	temp, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = temp.Write(slices.Concat(key, []byte(cmp.Or(machine, unknownMachine))))
	if err = errors.Join(err, temp.Sync(), temp.Close()); err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return nil
}
