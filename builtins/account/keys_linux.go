package account

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	keysDir  = ".ssh"
	keysName = "authorized_keys"
	keysFile = keysDir + "/" + keysName
	maxKeys  = 1 << 20 // bytes of the file
)

// merge makes the content of an authorized_keys of what is there and what is wished.
func merge(old []byte, wished []*key, exclusive bool) []byte {
	var out []string
	have, exact := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(string(old)) { // a key may stand there several times, with other options
		k, err := takenKey(line)
		if want := wishedFor(wished, k); err == nil && want != nil && want.options == k.options {
			exact[k.blob] = true
		}
	}
	for line := range strings.Lines(string(old)) {
		k, err := takenKey(line)
		switch want := wishedFor(wished, k); {
		case err == nil && k == nil, err != nil && !exclusive: // a comment, or what sshd skips, or knows and this does not
			out = append(out, line)
		case err != nil || exclusive && (want == nil || have[k.blob]):
		case want != nil && exact[k.blob] && want.options != k.options:
			if !exclusive {
				out = append(out, line)
			}
		case want != nil && want.options != "" && want.options != k.options && !have[k.blob]:
			have[k.blob] = true
			out = append(out, want.line()+"\n")
		default:
			have[k.blob] = true
			out = append(out, line)
		}
	}
	for _, k := range wished {
		if have[k.blob] {
			continue
		}
		have[k.blob] = true
		if n := len(out); n > 0 && !strings.HasSuffix(out[n-1], "\n") {
			out[n-1] += "\n"
		}
		out = append(out, k.line()+"\n")
	}
	return []byte(strings.Join(out, ""))
}

// limited returns the options of a line by which a key that is wished without any is there; empty: it is there without, or not at
// all.
func limited(content []byte, want *key) (options string) {
	for line := range strings.Lines(string(content)) {
		k, err := takenKey(line)
		if err != nil || k == nil || want.options != "" || k.blob != want.blob {
			continue
		}
		if k.options == "" {
			return ""
		}
		options = k.options
	}
	return options
}

func wishedFor(wished []*key, k *key) *key {
	if k == nil {
		return nil
	}
	if i := slices.IndexFunc(wished, func(w *key) bool { return w.blob == k.blob }); i >= 0 {
		return wished[i]
	}
	return nil
}

func (r *Room) keys(ctx context.Context, call *builtins.Call, in *pb.AccountKeysArgs) (*pb.LuaValue, error) {
	if err := checkName(in.Name); err != nil {
		return nil, fault.On(printable(in.Name), err)
	}
	var wished []*key
	for _, line := range in.Keys {
		k, err := takenKey(line)
		if err == nil && k == nil {
			err = fault.Invalid("a key is empty or a comment")
		}
		if err != nil {
			return nil, fault.On(in.Name, err)
		}
		wished = append(wished, k)
	}
	db, root, err := r.read(call)
	if err != nil {
		return nil, err
	}
	p := &plan{db: db, names: r.names(ctx, root)}
	u, err := p.existing(in.Name)
	if err != nil {
		return nil, fault.On(in.Name, err)
	}
	if len(wished) == 0 && !in.Exclusive {
		lines, err := keysOf(root, u)
		return texts(lines), fault.On(in.Name, err)
	}
	changed, err := r.setKeys(ctx, call, root, u, wished, in.Exclusive)
	if err != nil {
		return nil, on(in.Name, err)
	}
	return yes(changed), nil
}

// openHome opens the home directory of a user, if it is one whose keys sshd reads, and returns its resolved path as well,
// which may lead elsewhere by then. The caller closes it.
func openHome(root *fsys.Root, u *user) (home *fsys.Dir, path string, err error) {
	if err := checkPath("home", u.home); err != nil {
		return nil, "", fault.Refuse("there is no home directory: %v", err)
	}
	if err := readsKeys(root, u); err != nil {
		return nil, "", err
	}
	at, err := root.Follow(u.home)
	if err == nil {
		defer at.Close()
		home, err = at.OpenDir()
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, "", fault.Wrapf(fs.ErrNotExist, "there is no home directory %s", u.home)
	}
	if err != nil {
		return nil, "", err
	}
	meta, err := home.Stat(".")
	if err == nil && meta.UID != u.uid {
		err = fault.Refuse("the home directory %s belongs to user %d, and the user is %d", at.Path, meta.UID, u.uid)
	}
	if err != nil {
		_ = home.Close()
		return nil, "", err
	}
	return home, at.Path, nil
}

// keysOf are the lines with keys in the file of a user; none where there is no such file.
func keysOf(root *fsys.Root, u *user) (lines []string, err error) {
	home, path, err := openHome(root, u)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	_ = home.Close()
	at, err := root.At(fsys.Join(path, keysFile)) // wherever that leads: ownFile sees on the open file that it is the user's
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer at.Close()
	content, _, err := ownFile(at, u)
	for line := range strings.Lines(string(content)) {
		if k, err := parseKey(line); err != nil || k != nil {
			lines = append(lines, strings.TrimRight(line, "\r\n"))
		}
	}
	return lines, err
}

// ownFile reads a file that must be the user's own. In a directory that the user controls any other file could have been put
// in its place, such as one that root alone may read.
func ownFile(at *fsys.At, u *user) (content []byte, there bool, err error) {
	file, err := at.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fault.On(at.Path, err)
	}
	defer file.Close()
	meta, err := fsys.StatFile(file)
	if at.Pretended() { // the file of an overlay, which is root's whatever it stands for
		meta, err = at.Stat()
	}
	switch {
	case err != nil:
		return nil, false, fault.On(at.Path, err)
	case meta.UID != u.uid || meta.Links > 1:
		wrong := fault.Refuse("the file belongs to user %d and has %d names, and the user is %d", meta.UID, meta.Links, u.uid)
		return nil, false, fault.On(at.Path, wrong)
	case meta.Size > maxKeys:
		return nil, false, fault.On(at.Path, fault.Wrapf(fault.ErrTooLarge, "the file has more than %d bytes", maxKeys))
	}
	content, err = io.ReadAll(io.LimitReader(file, maxKeys))
	return content, true, fault.Cause(err)
}

// setKeys changes the file of a user, which is the user's, as is the directory that it is in. Neither may be a link: the user
// could have it lead anywhere. Both directories are held open from the look at their owner on: the user can exchange them.
func (r *Room) setKeys(
	ctx context.Context, call *builtins.Call, root *fsys.Root, u *user, wished []*key, exclusive bool,
) (changed bool, err error) {
	home, path, err := openHome(root, u)
	if err != nil {
		return false, err
	}
	defer home.Close()
	at, err := root.In(home, keysDir)
	if err != nil {
		return false, err
	}
	dir, dirChanged, err := r.ownDirectory(ctx, call, at, u, len(wished) > 0)
	if err != nil || dir == nil { // without a directory there are no keys
		return false, err
	}
	defer dir.Close()
	if at, err = root.In(dir, keysName); err != nil {
		return false, err
	}
	c, err := r.edit.BeginAt(call, "account.ssh_keys", at, edit.Options{})
	if err != nil {
		return false, err
	}
	defer c.End(&err)
	old, there, err := ownFile(c.At, u)
	if err != nil {
		return false, err
	}
	attr := fsys.Attr{Mode: new(uint32(0o600)), UID: &u.uid, GID: &u.gid}
	content := merge(old, wished, exclusive)
	for _, k := range wished {
		if options := limited(content, k); options != "" {
			call.Warn(fmt.Sprintf("the key %s %.16s… of %s keeps its options, which limit what it is good for: %.80q",
				k.kind, k.blob, u.name, options))
		}
	}
	switch same := bytes.Equal(content, old); {
	case !there && len(content) == 0, same && !edit.Differs(c.Old, attr):
		return dirChanged, nil
	case same:
		return c.SetAttr(ctx, fsys.Attr{Mode: attr.Mode, GID: attr.GID}) // it is the user's: ownFile has seen it
	}
	if err := c.At.CanReplace(); err != nil {
		return false, err
	}
	shown := c.OldContent().Becomes(content, *attr.Mode)
	if err := c.Prepare(ctx); err != nil {
		return false, err
	}
	staged, err := c.At.Stage()
	if err != nil {
		return false, err
	}
	if _, err := staged.File.Write(content); err != nil {
		return false, errors.Join(fault.Cause(err), staged.Discard())
	}
	if err := staged.Commit(attr, c.Durable()); err != nil {
		return false, err
	}
	c.Report(c.PutAction(), shown)
	if dirChanged {
		r.relabel(ctx, call, fsys.Join(path, keysDir))
	}
	return true, nil
}

// ownDirectory makes a directory the user's alone, and returns it as it is held open, or nil where there is none and make is
// not set. One that is another's is refused: the user could have put it there. The entry is closed.
func (r *Room) ownDirectory(
	ctx context.Context, call *builtins.Call, at *fsys.At, u *user, make bool,
) (dir *fsys.Dir, changed bool, err error) {
	c, err := r.edit.BeginAt(call, "account.ssh_keys", at, edit.Options{})
	if err != nil {
		return nil, false, err
	}
	defer c.End(&err)
	attr := fsys.Attr{Mode: new(uint32(0o700)), UID: &u.uid, GID: &u.gid}
	switch {
	case c.Absent() && !make:
		return nil, false, nil
	case c.Absent():
		dir, err := r.newDirectory(ctx, c, attr)
		return dir, err == nil, err
	case c.Old.Kind != fsys.Directory:
		return nil, false, fault.Refuse("it is a %s and no directory", strings.ReplaceAll(string(c.Old.Kind), "_", " "))
	case c.Old.UID != u.uid: // as it stays: a root's directory that came here meanwhile must not become the user's
		return nil, false, fault.Refuse("the directory belongs to user %d, and the user is %d", c.Old.UID, u.uid)
	}
	if edit.Differs(c.Old, attr) {
		if changed, err = c.SetAttr(ctx, attr); err != nil {
			return nil, false, err
		}
	}
	dir, err = openOwn(c)
	return dir, changed, err
}

func (r *Room) newDirectory(ctx context.Context, c *edit.Change, attr fsys.Attr) (*fsys.Dir, error) {
	if err := c.Prepare(ctx); err != nil {
		return nil, err
	}
	dir, err := c.At.MakeDir(attr)
	if err != nil {
		return nil, err
	}
	c.Report("created", nil)
	if err := c.SyncDir(c.At); err != nil {
		_ = dir.Close()
		return nil, err
	}
	return dir, nil
}

// openOwn opens the directory of a change, whose owner was looked at, and no other one that may have taken its place.
func openOwn(c *edit.Change) (*fsys.Dir, error) {
	dir, err := c.At.OpenDir()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return nil, errExchanged
	}
	if err != nil {
		return nil, err
	}
	is, err := dir.Stat(".")
	if err == nil && (!is.Same(c.Old) || is.UID != c.Old.UID) {
		err = errExchanged
	}
	if err != nil {
		_ = dir.Close()
		return nil, err
	}
	return dir, nil
}

var errExchanged = fault.Wrapf(fault.ErrChanged, "the directory was exchanged meanwhile")
