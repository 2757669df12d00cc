package fsys

import (
	"errors"
	"io"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// Dir is a directory that is open for reading.
type Dir struct {
	dir  directory
	path string // resolved, escaped
}

// Close frees the directory.
func (d *Dir) Close() error { return d.dir.close() }

// Each calls f with the name of each object in the directory, not escaped, in no order, until it returns an error, which Each
// returns. It holds few names at a time, however many there are. f may remove what has the name.
func (d *Dir) Each(f func(name string) error) error { return d.dir.each(f) }

// Names returns the names in the directory, not escaped, in no order. Where there are more than most it is fault.ErrTooLarge,
// and nothing is returned. After another error they are those that were read before.
func (d *Dir) Names(most int) (names []string, err error) {
	err = d.Each(func(name string) error {
		if len(names) >= most {
			return errEnough
		}
		names = append(names, name)
		return nil
	})
	if err == errEnough {
		return nil, fault.Wrapf(fault.ErrTooLarge, "more than %d objects in one directory", most)
	}
	return names, err
}

// SyncAll makes durable all of the file system that the directory is on, also what others wrote.
func (d *Dir) SyncAll() error { return d.dir.syncAll() }

// Stat is At.Stat of a name in the directory, not escaped.
func (d *Dir) Stat(name string) (Meta, error) { return d.dir.stat(name) }

// SetAttr sets what attr says on the directory itself, wherever its name leads by now.
func (d *Dir) SetAttr(attr Attr) error { return d.dir.setAttr(".", Directory, attr) }

// At returns the entry of a name in the directory, not escaped, which costs the same at any depth. It outlives the directory;
// the caller closes it. A path that is too long for Root.Exact is refused.
func (d *Dir) At(name string) (*At, error) {
	at := &At{Path: Join(d.path, text.EscapePath(name)), Name: name}
	if _, err := checkPath(at.Path); err != nil {
		return nil, err
	}
	dir, err := d.dir.dup()
	at.dir = dir
	return at, err
}

// namesAtOnce is how many names of a directory are read at a time.
const namesAtOnce = 256

// errEnough ends the reading of names.
var errEnough = errors.New("enough names")

// eachName is Dir.Each.
func eachName(dir handle, f func(name string) error) error {
	file, err := openNames(dir)
	if err != nil {
		return err
	}
	defer file.Close()
	for {
		names, err := file.Readdirnames(namesAtOnce)
		for _, name := range names {
			if err := f(name); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fault.Cause(err)
		}
	}
}
