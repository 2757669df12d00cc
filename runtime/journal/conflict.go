package journal

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// conflict is what others did meanwhile to an object that was restored.
type conflict struct {
	put   string   // where their version is now; empty: there is none
	reset []string // attributes that they set, and that are as before again
	began bool     // the object may be half restored
	apart bool     // it had other names, which are of another file now
}

// mergeAttributes returns the attributes that a rollback restores, of an object that others may have changed since.
// What the step did not change keeps what they made of it, unless keep is false: it may be another object by now. What
// is restored although they changed it is lost, and named by reset.
func mergeAttributes(was, after, is fsys.Meta, keep bool) (want fsys.Meta, reset []string) {
	want = was
	if was.Kind != after.Kind || was.Kind != is.Kind || was.Kind == fsys.Absent {
		return want, nil
	}
	theirs := func(changed, ours bool, lost string) bool {
		if changed && (ours || !keep) {
			reset = append(reset, lost)
		}
		return changed && !ours && keep
	}
	if was.Kind != fsys.Symlink && theirs(is.Mode != after.Mode && is.Mode != was.Mode, after.Mode != was.Mode,
		fmt.Sprintf("mode %04o", is.Mode)) {
		want.Mode = is.Mode
	}
	owned := func(a, b fsys.Meta) bool { return a.UID == b.UID && a.GID == b.GID }
	if theirs(!owned(is, after) && !owned(is, was), !owned(after, was), fmt.Sprintf("owner %d:%d", is.UID, is.GID)) {
		want.UID, want.GID = is.UID, is.GID
	}
	want.Xattrs = map[string][]byte{}
	for _, name := range xattrNames(was, after, is) {
		from := was
		if theirs(!sameXattr(name, is, after) && !sameXattr(name, is, was), !sameXattr(name, after, was),
			"attribute "+text.ToValidUTF8(name)) {
			from = is
		}
		if value, ok := from.Xattrs[name]; ok {
			want.Xattrs[name] = value
		}
	}
	return want, reset
}

func sameXattr(name string, a, b fsys.Meta) bool {
	one, has := a.Xattrs[name]
	other, hasToo := b.Xattrs[name]
	return has == hasToo && bytes.Equal(one, other)
}

// xattrNames returns the names of all extended attributes, each once, sorted.
func xattrNames(of ...fsys.Meta) []string {
	var names []string
	for _, meta := range of {
		for name := range meta.Xattrs {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// keepConflict saves what somebody else put in the place of the object, or wrote into it, under a conflict name.
func (r *restorer) keepConflict() error {
	if r.is.Kind == fsys.Absent || r.is.Kind == fsys.Directory && r.was.Kind == fsys.Directory {
		return nil
	}
	if r.is.Kind == fsys.File && r.kept() {
		err := r.copyAside()
		if !errors.Is(err, syscall.EAGAIN) || r.is.Links > 1 {
			return err
		}
	}
	return r.moveAside()
}

func (r *restorer) moveAside() error {
	return r.withConflictName(func(to *fsys.At) error {
		return r.do("restore.aside", func() error { return r.at.Rename(to, false) })
	}, true)
}

func (r *restorer) copyAside() error {
	return r.withConflictName(func(to *fsys.At) error {
		if _, err := to.Stat(); err == nil {
			return fs.ErrExist
		}
		from, err := r.at.Of(r.is).Open()
		if err != nil {
			return err
		}
		defer from.Close()
		staged, err := to.Stage() // it has its attributes before it has a name
		if err != nil {
			return err
		}
		if err := fsys.CopyFile(r.ctx, staged.File, from); err != nil {
			return errors.Join(err, staged.Discard())
		}
		return r.do("restore.aside", func() error { return staged.Restore(r.is, true) })
	}, false)
}

// withConflictName calls put with a free name beside the object. moved: put moves the object.
func (r *restorer) withConflictName(put func(*fsys.At) error, moved bool) error {
	const maxSuffix = 27 // of what follows it where the name is taken
	suffix := r.pass.tx.conflictSuffix()
	base := r.at.Name
	if len(base)+len(suffix)+maxSuffix > 255 {
		base = base[:255-len(suffix)-maxSuffix]
	}
	for n := 1; n < 1000; n++ {
		candidate := base + suffix
		switch {
		case n > 10: // somebody takes all that can be guessed
			candidate += "-" + rand.Text()
		case n > 1:
			candidate += "-" + strconv.Itoa(n)
		}
		path := childPath(parent(r.object.Path), candidate)
		to, err := r.at.Beside(candidate)
		if err != nil {
			return err
		}
		err = errors.Join(put(to), to.Close())
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			r.conflict = path
			r.pass.markDirty(path)
			if moved {
				r.is = fsys.Meta{Kind: fsys.Absent}
			}
		}
		return err
	}
	return fs.ErrExist
}

// maxHints bounds how many objects of a kind a hint names.
const maxHints = 20

// Hint returns in words why the rollback is not complete, and what others had changed meanwhile, without secrets; empty:
// neither.
func (r Report) Hint() string {
	var hints, reset []string
	if r.Err != nil {
		hints = append(hints, "the rollback is not complete: "+r.Err.Error())
	}
	if at := r.Conflicts(); len(at) > 0 {
		hints = append(hints, "others had changed some of it meanwhile; theirs was kept as "+some(at))
	}
	for _, u := range r.Steps {
		if len(u.Reset) > 0 {
			reset = append(reset, strings.Join(u.Reset, ", ")+" of "+u.Target)
		}
	}
	if len(reset) > 0 {
		hints = append(hints, fmt.Sprintf("others had set %s meanwhile, which is as before again", some(reset)))
	}
	return r.told(strings.Join(hints, "; "))
}

// some joins the first of a list, and says how many more there are.
func some(list []string) string {
	if more := len(list) - maxHints; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:maxHints], ", "), more)
	}
	return strings.Join(list, ", ")
}
