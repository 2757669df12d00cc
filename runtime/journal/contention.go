package journal

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Who may write to a directory can put things in the way of a rollback there, by accident or on purpose: names, leases,
// another object at the very moment. That may delay it, and must not make it fail.

const (
	// maxPatience is how long one rollback waits altogether for others who are in the way.
	maxPatience = 10 * time.Second
	patienceFor = 20 * time.Millisecond // between two attempts
	maxTries    = 25                    // of one object
	rootTries   = 3                     // of one that was changed where only root can do that
)

// retry repeats what others may have been in the way of, as long as there is patience. Below a directory that was found to be
// taken away nothing is repeated.
func (p *undoPass) retry(ctx context.Context, path string, act func() error) error {
	err := act()
	tries := maxTries
	if errors.Is(err, fault.ErrChanged) && !p.othersAt(path) {
		tries = rootTries
	}
	for n := 1; n < tries && contended(err) && !p.away[parent(path)] && p.patience > 0 && context.Cause(ctx) == nil; n++ {
		time.Sleep(patienceFor)
		p.patience -= patienceFor
		err = act()
	}
	return err
}

// othersAt reports whether others than root can be in the way at a path.
func (p *undoPass) othersAt(path string) bool {
	may, err := p.tx.journal.config.Root.Exchangeable(path)
	return may || err != nil
}

// settledError is one that no further attempt changes.
type settledError struct{ error }

func (e settledError) Unwrap() error { return e.error }

// contended reports whether an error may be gone with the next attempt: something took a name or left it in between, another
// object came there, or somebody holds a lease.
func contended(err error) bool {
	if errors.As(err, &settledError{}) {
		return false
	}
	return errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) ||
		errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EAGAIN) || errors.Is(err, fault.ErrChanged)
}

// captureAny describes what is at a place, whoever put it there. Of extended attributes, of which others may set any number,
// partly says that there are more than are read: those that were differ from all that is kept.
func captureAny(at *fsys.At) (meta fsys.Meta, partly bool, err error) {
	meta, err = at.Capture()
	if partly = errors.Is(err, fault.ErrTooLarge); partly {
		err = nil
	}
	return meta, partly, err
}

// capture reads what is there.
func (r *restorer) capture() (err error) {
	r.is, r.partly, err = captureAny(r.at)
	return err
}

// merge is mergeAttributes with what is there. Extended attributes that are read in part are not kept, and are named by reset.
func (r *restorer) merge(after *pb.JournalState) (want fsys.Meta, reset []string) {
	left, is := fromState(after), r.is
	if r.partly {
		is.Xattrs = left.Xattrs
	}
	want, reset = mergeAttributes(r.was, left, is, unchanged(after, r.is))
	if r.partly && want.Kind == is.Kind {
		reset = append(reset, "extended attributes, of which there are more than can be kept")
	}
	return want, reset
}

// open opens the object for reading. A lease on it is waited for a moment: those who take one to serve the file to
// others give it up at once.
func (r *restorer) open() (file *os.File, err error) {
	for n := 0; ; n++ {
		file, err = r.at.Of(r.is).Open()
		if !errors.Is(err, syscall.EAGAIN) || n == 5 || r.pass.patience <= 0 {
			return file, err
		}
		time.Sleep(patienceFor)
		r.pass.patience -= patienceFor
	}
}

// openInPlace opens the object for writing. Only a file that had other names before is worth waiting for those who hold
// a lease on it: any other one is replaced.
func (r *restorer) openInPlace() (*os.File, error) {
	file, err := r.at.Of(r.is).OpenInPlace()
	if errors.Is(err, syscall.EAGAIN) && r.is.Links > 1 && r.was.Links > 1 {
		return r.at.Of(r.is).OpenLeased()
	}
	return file, err
}

// sweepTempFiles removes the temporary files that an interrupted operation left in a directory, once per pass. What
// cannot be removed stays, without an error: it may be another user's, made to be in the way.
func (p *undoPass) sweepTempFiles(dir string) {
	if dir == "" || p.tempFilesRemoved[dir] {
		return
	}
	p.tempFilesRemoved[dir] = true
	swept := false
	_ = p.tx.journal.eachName(dir, func(name string) error {
		if !fsys.IsTemp(name) {
			return nil
		}
		at, err := p.tx.journal.config.Root.Exact(childPath(dir, name))
		if err != nil {
			return nil
		}
		defer at.Close()
		meta, err := at.Stat()
		switch {
		case err != nil:
		case meta.Kind != fsys.File: // of a directory only an empty one, as the agent makes them
			_ = p.tx.journal.do("restore.sweep", at.Remove)
		case !swept: // spares the file of an upload in progress, which holds a lock on it
			_, _ = at.Sweep()
			swept = true
		}
		return nil
	})
}
