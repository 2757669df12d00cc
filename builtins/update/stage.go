package update

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// programName is the new program in the staging directory.
const programName = "agent"

// stage is the directory beside a program where a new one is put together: on the same file system, so that it can be renamed,
// with the labels that programs have there, and for the agent's user alone.
type stage struct {
	path   string   // of the directory
	parent *os.Root // the directory of the program
	root   *os.Root
	file   *os.File // being written; nil: not yet, or no more
}

// stagePath returns the staging directory of a program.
func stagePath(target string) string {
	return filepath.Join(filepath.Dir(target), "."+filepath.Base(target)+".update")
}

// openStage makes the staging directory of a program, or takes the one that an earlier agent left.
func openStage(target string) (_ *stage, err error) {
	path := stagePath(target)
	if err := checkParents(filepath.Dir(path)); err != nil {
		return nil, err
	}
	s := &stage{path: path}
	if s.parent, err = os.OpenRoot(filepath.Dir(path)); err != nil {
		return nil, fault.Cause(err)
	}
	err = s.parent.Mkdir(filepath.Base(path), 0o700)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = checkStage(path)
	}
	if err == nil {
		s.root, err = s.parent.OpenRoot(filepath.Base(path))
	}
	if err != nil {
		return nil, errors.Join(fault.On(path, fault.Cause(err)), s.parent.Close())
	}
	return s, nil
}

// checkStage refuses a staging directory that this room did not make.
func checkStage(path string) error {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return fault.Refuse("it is no directory: it was not made by an agent")
	case info.Mode().Perm() != 0o700:
		return fault.Refuse("its mode is %o, and not 700: it was not made by an agent", info.Mode().Perm())
	}
	return checkOwner(path, info)
}

// create begins the file of the new program.
func (s *stage) create() error {
	err := s.root.Remove(programName)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		s.file, err = s.root.OpenFile(programName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	}
	return fault.Cause(err)
}

func (s *stage) write(data []byte) error {
	_, err := s.file.Write(data)
	return fault.Cause(err)
}

// finish makes what was written durable and returns the file that will run, opened again.
func (s *stage) finish() (*os.File, error) {
	written, err := s.file.Stat()
	err = errors.Join(err, s.file.Sync(), s.file.Close())
	s.file = nil
	if err != nil {
		return nil, fault.Cause(err)
	}
	file, err := s.root.Open(programName)
	if err != nil {
		return nil, fault.Cause(err)
	}
	if info, err := file.Stat(); err != nil || !os.SameFile(info, written) {
		return nil, errors.Join(fault.Wrapf(fault.ErrChanged, "%s is another file by now", programName), err, file.Close())
	}
	return file, nil
}

// publish makes the program executable, and all of it durable.
func (s *stage) publish(file *os.File) error {
	err := file.Chmod(0o755)
	return fault.Cause(errors.Join(err, file.Sync(), syncDir(s.path), syncDir(filepath.Dir(s.path))))
}

// remove removes the program and the directory, and closes them.
func (s *stage) remove() error {
	var errs []error
	if s.file != nil {
		errs = append(errs, s.file.Close())
		s.file = nil
	}
	if err := s.root.Remove(programName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	if err := s.parent.Remove(filepath.Base(s.path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return fault.Cause(errors.Join(append(errs, s.close())...))
}

// close closes the directory and leaves what is in it.
func (s *stage) close() error { return errors.Join(s.root.Close(), s.parent.Close()) }

// removeStage removes the staging directory of a program, if there is one that an agent made.
func removeStage(target string) error {
	path := stagePath(target)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s, err := openStage(target)
	if err != nil {
		return fmt.Errorf("remove what an update left: %w", err)
	}
	return s.remove()
}
