package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/runtime/journal/internal/frames"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// formatVersion is the version of the files and records of a journal. Who raises it must read the older ones, and must not
// write the new one before an update of the agent has been confirmed: the former agent refuses it.
const formatVersion = 1

// formatFile says, in decimal digits, in which version the directory is. It is there from the first agent on that knows it.
const formatFile = "format"

// errNewer is the cause of what is refused since a newer agent wrote it.
var errNewer = fault.Wrapf(errors.ErrUnsupported, "newer journal")

// newerFormat refuses a version.
func newerFormat(version uint32) error {
	return fault.Wrapf(errNewer, "the journal has format version %d, and this agent reads %d: %s", version, formatVersion,
		"a newer agent wrote it; nothing of it is changed")
}

// checkFormat refuses a directory of another version. Where none is noted it notes this one.
func (j *Journal) checkFormat() error {
	found, err := readFormat(j.config.Dir)
	if err != nil || found {
		return err
	}
	temp := j.dir(formatFile + ".new")
	return j.do("open.format", func() error {
		file, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(file, formatVersion)
		if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
			err = os.Rename(temp, j.dir(formatFile))
		}
		if err == nil {
			err = syncDir(j.config.Dir)
		}
		return err
	})
}

// readFormat refuses a directory of another version; found is false where none is noted.
func readFormat(dir string) (found bool, err error) {
	text, err := os.ReadFile(filepath.Join(dir, formatFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fault.Cause(err)
	}
	version, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return true, fault.Wrapf(fault.ErrCorrupt, "%s is no number of a format", filepath.Join(dir, formatFile))
	}
	if version != formatVersion {
		return true, newerFormat(uint32(version))
	}
	return true, nil
}

// CheckFormat returns an error where this agent does not read the journal in a directory. It changes nothing, and another
// process may have it open. One that is not there is read.
func CheckFormat(dir string) error {
	if _, err := readFormat(dir); err != nil {
		return err
	}
	open, err := os.ReadDir(filepath.Join(dir, "open"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Cause(err)
	}
	for _, entry := range open {
		if err := checkBegin(filepath.Join(dir, "open", entry.Name(), "journal"), entry.Name()); err != nil {
			return fmt.Errorf("transaction %s: %w", entry.Name(), err)
		}
	}
	return nil
}

// checkBegin refuses a log that a newer agent began. What is not there, or not whole, a recovery deals with.
func checkBegin(path, id string) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Cause(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fault.Cause(err)
	}
	payload, err := frames.ReadFirst(id, io.NewSectionReader(file, 0, info.Size()))
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return fault.Cause(err)
	}
	record := &pb.JournalRecord{}
	if err := proto.Unmarshal(payload, record); err != nil {
		return nil
	}
	if version := record.GetBegin().GetVersion(); version != formatVersion && record.GetBegin() != nil {
		return newerFormat(version)
	}
	return nil
}
