package fsys

import (
	"errors"
	"io/fs"
	"os"
)

// Exchangeable reports whether others than root may exchange a directory on the way to a resolved path: one of them is another
// user's, or others may write to it. Between two looks such a path may lead to two places. Directories that are missing are
// left out.
func (r *Root) Exchangeable(path string) (bool, error) {
	below := Meta{Kind: Absent} // what is at the path itself may be another object than before
	for dir := path; !IsRoot(dir); {
		dir = Parent(dir)
		meta, err := r.statExact(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || meta.foreign() && !meta.holds(below) {
			return true, err
		}
		below = meta
	}
	return false, nil
}

// holds reports whether only root, or the agent's user, may move what is in a directory, though others may write to it.
func (m Meta) holds(child Meta) bool {
	const sticky = 0o1000
	return m.Mode&sticky != 0 && TrustedUser(m.UID) && child.Kind != Absent && TrustedUser(child.UID)
}

// foreign reports whether others than root may change what is in a directory. On Windows no mode says that, and it is false.
func (m Meta) foreign() bool {
	const others = 0o022
	own := os.Geteuid()
	return own >= 0 && (m.Mode&others != 0 || !TrustedUser(m.UID))
}

func (r *Root) statExact(path string) (Meta, error) {
	at, err := r.Exact(path)
	if err != nil {
		return Meta{}, err
	}
	defer at.Close()
	return at.Stat()
}
