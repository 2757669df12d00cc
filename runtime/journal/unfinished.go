package journal

import (
	"errors"
	"io/fs"
	"os"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// UnfinishedOwns reports whether a transaction that a former agent left unfinished in the directory of a journal has a
// before-image of what is at one of some resolved paths, so that Recover may restore it. The journal is not open, and one that
// is not there has none. It changes nothing.
func UnfinishedOwns(dir string, paths ...string) (bool, error) {
	j := &Journal{config: Config{Dir: dir}}
	names, err := os.ReadDir(j.dir("open"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fault.Cause(err)
	}
	for _, name := range names {
		l, err := j.loadJournal("open", name.Name())
		l.close()
		if err != nil || l.abort != nil { // it is not taken back, or was
			continue
		}
		for _, path := range paths {
			if l.tx.status.owns(path) {
				return true, nil
			}
		}
	}
	return false, nil
}
