package fsys

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// finalPath returns the one path of what a path leads to, as the system reports it for the open object: links and junctions
// followed, short names made long ones, and a volume by its letter, however it was called.
func finalPath(path string) (string, error) {
	name, err := windows.UTF16PtrFromString(longPath(path))
	if err != nil {
		return "", err
	}
	h, err := windows.CreateFile(name, windows.FILE_READ_ATTRIBUTES,
		windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE, nil, windows.OPEN_EXISTING,
		windows.FILE_FLAG_BACKUP_SEMANTICS, 0)
	if err != nil {
		return "", fault.Cause(err)
	}
	defer windows.CloseHandle(h)
	final, err := pathOf(h)
	if errors.Is(err, windows.ERROR_MORE_DATA) { // Wine cannot return a long one, whatever the buffer
		if final, err = filepath.EvalSymlinks(path); err != nil {
			return "", fault.Cause(err)
		}
	}
	return final, err
}

// pathOf returns the path of an open object; one that is not on a drive is refused.
func pathOf(h windows.Handle) (string, error) {
	buf := make([]uint16, windows.MAX_PATH)
	for {
		n, err := windows.GetFinalPathNameByHandle(h, &buf[0], uint32(len(buf)), 0)
		if err != nil {
			return "", fault.Cause(err)
		}
		if int(n) < len(buf) {
			break
		}
		buf = make([]uint16, n+1)
	}
	path := windows.UTF16ToString(buf)
	bare, ok := strings.CutPrefix(path, `\\?\`)
	if !ok || len(filepath.VolumeName(bare)) != 2 {
		return "", fault.Refuse("it leads to %s, which is on no drive", path)
	}
	return bare, nil
}

// longName returns the name of a directory's entry for the short one that it may have beside it, such as PROGRA~1; any other
// name, and one at which nothing is, is returned as it is.
func longName(dir, name string) string {
	if !strings.Contains(name, "~") {
		return name
	}
	path, err := windows.UTF16PtrFromString(longPath(filepath.Join(dir, name)))
	if err != nil {
		return name
	}
	var found windows.Win32finddata
	h, err := windows.FindFirstFile(path, &found)
	if err != nil {
		return name
	}
	windows.FindClose(h)
	if long := windows.UTF16ToString(found.FileName[:]); long != "" && !Equal(long, name) {
		return long
	}
	return name
}

// pin keeps a directory where it is: what is open without being shared for deletion can be neither renamed nor removed, nor can
// the directories above it. So what goes by its path later goes to it. The zero value pins nothing.
type pin struct{ handle windows.Handle }

// set pins a directory that was resolved; one that has become a link since is fault.ErrChanged.
func (p *pin) set(dir handle) error {
	if p.handle != 0 {
		return nil
	}
	name, err := windows.UTF16PtrFromString(longPath(dir))
	if err != nil {
		return err
	}
	h, err := windows.CreateFile(name, windows.FILE_LIST_DIRECTORY|windows.FILE_READ_ATTRIBUTES,
		windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE, nil, windows.OPEN_EXISTING,
		windows.FILE_FLAG_BACKUP_SEMANTICS|windows.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if err != nil {
		return fault.Cause(err)
	}
	p.handle = h
	return p.leads(dir)
}

func (p *pin) close() error {
	if p.handle == 0 {
		return nil
	}
	err := windows.CloseHandle(p.handle)
	p.handle = 0
	return fault.Cause(err)
}

// leads reports whether a path still leads to the pinned directory: an empty one can be made a link in place.
func (p *pin) leads(dir handle) error {
	if p.handle == 0 {
		return nil
	}
	pinned, err := pathOf(p.handle)
	if err != nil {
		return err
	}
	now, err := finalPath(dir)
	if err != nil {
		return err
	}
	if !Equal(pinned, dir) || !Equal(now, dir) {
		return errChecked
	}
	return nil
}

// holds reports whether a new file is in the pinned directory.
func (p *pin) holds(dir handle, file *os.File) error {
	if p.handle == 0 {
		return nil
	}
	path, err := pathOf(windows.Handle(file.Fd()))
	if err == nil && !Equal(filepath.Dir(path), dir) {
		err = errChecked
	}
	return errors.Join(err, p.leads(dir))
}
