package fsys

import (
	"errors"
	"io/fs"
	"os"
)

// Exchangeable says whether others than root may exchange a directory on the way to a resolved path: one of them is another
// user's, or others may write to it. Between two looks such a path may lead to two places. Directories that are missing are left
// out.
func (r *Root) Exchangeable(path string) (bool, error) {
	for dir := path; !IsRoot(dir); {
		dir = Parent(dir)
		meta, err := r.statExact(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		const others = 0o022
		if err != nil || meta.Mode&others != 0 || meta.UID != 0 && int(meta.UID) != os.Geteuid() {
			return true, err
		}
	}
	return false, nil
}

func (r *Root) statExact(path string) (Meta, error) {
	at, err := r.Exact(path)
	if err != nil {
		return Meta{}, err
	}
	defer at.Close()
	return at.Stat()
}
