package fsys

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// plan is a file system as it would be after changes that nobody makes. It knows what differs, and asks the real one for
// all else:
//
//	planned "/" ─ etc ─ motd: other content, in a file of the scratch directory
//	               ├── new: a directory that is nowhere yet
//	               └── old: nothing (nil)
type plan struct {
	real    *Root
	top     *planned
	scratch string // where contents are kept; made when it is needed
	files   int
	serial  uint64
	linked  map[[2]uint64]*planned // files with several names, by device and inode: what one name shows all show
}

// planned is an object as it would be.
type planned struct {
	meta  Meta
	real  string              // the resolved path at which it is now, with all that is in it; empty: nowhere
	file  string              // its content, where that differs from the real one
	names map[string]*planned // what differs in a directory; nil: nothing is there
	other bool                // its mode or owner differs
}

// may says why an ordinary user could not do what the bits stand for. Of what is as it is the file system itself says it.
func (o *planned) may(bits uint32) error {
	uid, gid := self()
	granted := o.meta.Mode
	switch {
	case uid == 0 || o.real != "" && !o.other:
		return nil
	case uid == o.meta.UID:
		granted >>= 6
	case gid == o.meta.GID:
		granted >>= 3
	}
	if granted&bits != bits {
		return syscall.EACCES
	}
	return nil
}

// The bits of a mode, for may.
const mayRead, mayWrite, maySearch = 4, 2, 1

// spot is the place of an At in a plan.
type spot struct {
	plan *plan
	dir  *planned
}

// Pretend gives a root on which changes are made to a plan and not to the files of r: whoever uses it finds them made. It
// predicts what a kernel refuses, as far as that is known beforehand: rights, owners, other file systems; not a full disk.
// Contents are kept below the directory scratch, until the caller closes the root, which must be before r. Unlike r it
// is for one goroutine at a time.
func (r *Root) Pretend(scratch string) (*Root, error) {
	top, err := r.Follow("/")
	if err != nil {
		return nil, err
	}
	defer top.Close()
	meta, err := top.Capture()
	if err != nil {
		return nil, err
	}
	p := &plan{real: r, scratch: scratch, top: &planned{meta: meta, real: "/"}}
	return &Root{dir: r.dir, host: r.host, plan: p}, nil
}

func (p *plan) close() error {
	if p.files == 0 {
		return nil
	}
	return os.RemoveAll(p.scratch)
}

// child finds what would be at a name of a directory.
func (p *plan) child(dir *planned, name string) (*planned, error) {
	if name == "." {
		return dir, nil
	}
	if dir.meta.Kind != Directory {
		return nil, syscall.ENOTDIR
	}
	if err := dir.may(maySearch); err != nil {
		return nil, err
	}
	if known, ok := dir.names[name]; ok {
		if known == nil {
			return nil, syscall.ENOENT
		}
		return known, nil
	}
	if dir.real == "" {
		return nil, syscall.ENOENT
	}
	at, err := p.real.Exact(join(dir.real, Escape(name)))
	if err != nil {
		return nil, err
	}
	defer at.Close()
	meta, err := at.Capture()
	switch {
	case err != nil:
		return nil, err
	case meta.Kind == Absent:
		return nil, syscall.ENOENT
	case meta.Kind == File && meta.Links > 1:
		return p.shared(&planned{meta: meta, real: at.Path}), nil
	}
	return &planned{meta: meta, real: at.Path}, nil
}

// shared gives the one object that all names of a file stand for.
func (p *plan) shared(object *planned) *planned {
	key := [2]uint64{object.meta.Dev, object.meta.Ino}
	if known := p.linked[key]; known != nil {
		return known
	}
	if p.linked == nil {
		p.linked = map[[2]uint64]*planned{}
	}
	p.linked[key] = object
	return object
}

// unlink takes a name from what is at a place, and from all that is below it, as far as that can be seen.
func (p *plan) unlink(dir *planned, name string) {
	object, err := p.child(dir, name)
	if err != nil {
		return
	}
	if object.meta.Kind != Directory {
		object.meta.Links--
		return
	}
	names, _ := p.entries(object)
	for _, name := range names {
		p.unlink(object, name)
	}
}

// put makes an object be at a name; nil for nothing.
func (d *planned) put(name string, object *planned) {
	if d.names == nil {
		d.names = map[string]*planned{}
	}
	if d.names[name] != object || object == nil {
		now := time.Now()
		d.meta.Mtime = Time{now.Unix(), uint32(now.Nanosecond())}
	}
	d.names[name] = object
}

// know keeps an object that is about to be changed itself.
func (d *planned) know(name string, object *planned) {
	if d.names == nil {
		d.names = map[string]*planned{}
	}
	if object != d {
		d.names[name] = object
	}
}

// walk resolves a path by the rules of the package.
func (p *plan) walk(root *Root, raw string, links follow) (*At, error) {
	dirs, names := []*planned{p.top}, []string{}
	rest, through := elements(raw), 0
	for len(rest) > 0 {
		name, last := rest[0], len(rest) == 1
		rest = rest[1:]
		dir := dirs[len(dirs)-1]
		if name == ".." {
			dirs, names = dirs[:max(len(dirs)-1, 1)], names[:max(len(names)-1, 0)]
			continue
		}
		if last && links != followAll {
			return p.at(root, dirs, append(names, name))
		}
		object, err := p.child(dir, name)
		switch {
		case last && errors.Is(err, fs.ErrNotExist):
			return p.at(root, dirs, append(names, name))
		case err != nil:
			return nil, err
		case object.meta.Kind == Symlink && links == followNone:
			return nil, fault.Wrapf(fault.ErrChanged, "the directory %s has become a link", Escape(name))
		case object.meta.Kind == Symlink:
			if through++; through > maxLinks {
				return nil, syscall.ELOOP
			}
			if err := p.trust(dir, object, name); err != nil {
				return nil, err
			}
			if strings.HasPrefix(object.meta.Target, "/") {
				dirs, names = dirs[:1], names[:0]
			}
			rest = append(elements(object.meta.Target), rest...)
		case last:
			return p.at(root, dirs, append(names, name))
		case object.meta.Kind != Directory:
			return nil, syscall.ENOTDIR
		default:
			dir.know(name, object)
			dirs, names = append(dirs, object), append(names, name)
		}
	}
	if len(names) == 0 {
		return p.at(root, dirs, []string{"."})
	}
	return p.at(root, dirs[:len(dirs)-1], names)
}

// elements are the parts of a path that mean something.
func elements(raw string) []string {
	var list []string
	for element := range strings.SplitSeq(raw, "/") {
		if element != "" && element != "." {
			list = append(list, element)
		}
	}
	return list
}

// maxLinks is how many links one path may lead through: the kernel's own number.
const maxLinks = 40

func (p *plan) at(root *Root, dirs []*planned, names []string) (*At, error) {
	name := names[len(names)-1]
	if len(name) > maxName {
		return nil, syscall.ENAMETOOLONG
	}
	dir := dirs[len(dirs)-1]
	if dir.meta.Kind != Directory {
		return nil, syscall.ENOTDIR
	}
	at := &At{Path: "/", Name: name, Public: true, root: root, spot: &spot{p, dir}}
	for i, parent := range names[:len(names)-1] {
		at.Path = join(at.Path, Escape(parent))
		at.Public = at.Public && dirs[i+1].meta.Mode&0o001 != 0
	}
	if name != "." {
		at.Path = join(at.Path, Escape(name))
	}
	return at, nil
}

// maxName is the kernel's NAME_MAX.
const maxName = 255

// trust says why a link is not followed. Of one that is there the file system itself says it.
func (p *plan) trust(dir, link *planned, name string) error {
	if link.real != "" {
		at, err := p.real.Exact(link.real)
		if err != nil {
			return err
		}
		defer at.Close()
		return at.safeLink()
	}
	others := dir.meta.Mode&0o022 != 0 && dir.meta.Mode&0o1000 == 0
	if p.real.host && (others || !ours(dir.meta.UID)) {
		return fault.Refuse("the link %s is not followed: others can write to the directory that it is in", Escape(name))
	}
	return nil
}

// object is what would be at the place.
func (s *spot) object(name string) (*planned, error) { return s.plan.child(s.dir, name) }

func (s *spot) stat(name string) (Meta, error) {
	object, err := s.object(name)
	if err != nil {
		return Meta{}, err
	}
	return s.plan.describe(object)
}

// describe gives the state of an object. Who has its content open may have changed it.
func (p *plan) describe(object *planned) (Meta, error) {
	meta := object.meta
	meta.Xattrs = maps.Clone(meta.Xattrs)
	if object.file == "" {
		return meta, nil
	}
	info, err := os.Stat(object.file)
	if err != nil {
		return Meta{}, fault.Cause(err)
	}
	meta.Size = info.Size()
	return meta, nil
}

func (s *spot) safeLink(name string) error {
	object, err := s.object(name)
	if err != nil {
		return err
	}
	return s.plan.trust(s.dir, object, name)
}

// open opens the content of a file. One that is to be written gets a content of its own first.
func (s *spot) open(name string, write bool) (*os.File, error) {
	object, err := s.object(name)
	if err != nil {
		return nil, err
	}
	bits := uint32(mayRead)
	if write {
		bits |= mayWrite
	}
	if err := object.may(bits); err != nil {
		return nil, err
	}
	if object.file == "" {
		real, err := s.plan.openReal(object, write)
		if err != nil || !write {
			return real, err
		}
		defer real.Close()
		copied, err := s.plan.newFile()
		if err != nil {
			return nil, err
		}
		err = CopyFile(context.Background(), copied, real)
		if err = errors.Join(err, fault.Cause(copied.Close())); err != nil {
			return nil, err
		}
		object.file = copied.Name()
		s.dir.know(name, object)
	}
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR
	}
	file, err := os.OpenFile(object.file, flags, 0)
	return file, fault.Cause(err)
}

// openReal opens the file as it is, and says whether it could be written.
func (p *plan) openReal(object *planned, write bool) (*os.File, error) {
	at, err := p.real.Exact(object.real)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	if write {
		if err := at.access(); err != nil {
			return nil, err
		}
	}
	return at.Open()
}

// newFile makes a file for a content. It is readable by the agent alone.
func (p *plan) newFile() (*os.File, error) {
	if p.files == 0 {
		if err := os.MkdirAll(filepath.Dir(p.scratch), 0o700); err != nil {
			return nil, fault.Cause(err)
		}
		if err := os.Mkdir(p.scratch, 0o700); err != nil {
			return nil, fault.Cause(err)
		}
	}
	p.files++
	file, err := os.OpenFile(filepath.Join(p.scratch, strconv.Itoa(p.files)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return file, fault.Cause(err)
}

// entries lists the names in a directory, in no order.
func (p *plan) entries(dir *planned) ([]string, error) {
	if err := dir.may(mayRead); err != nil {
		return nil, err
	}
	found := map[string]bool{}
	if dir.real != "" {
		at, err := p.real.Exact(dir.real)
		if err != nil {
			return nil, err
		}
		defer at.Close()
		open, err := at.OpenDir()
		if err != nil {
			return nil, err
		}
		defer open.Close()
		names, err := open.Names()
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			found[name] = true
		}
	}
	for name, object := range dir.names {
		if found[name] = true; object == nil {
			delete(found, name)
		}
	}
	return slices.Collect(maps.Keys(found)), nil
}

func (s *spot) openDir(name string) (*Dir, error) {
	object, err := s.object(name)
	switch {
	case err != nil:
		return nil, err
	case object.meta.Kind != Directory:
		return nil, syscall.ENOTDIR
	}
	if _, err := s.plan.entries(object); err != nil { // whether it can be read
		return nil, err
	}
	return &Dir{plan: s.plan, planned: object}, nil
}

// writable says why names in the directory cannot be changed.
func (s *spot) writable() error {
	if s.dir.real == "" || s.dir.other {
		return s.dir.may(mayWrite | maySearch)
	}
	at, err := s.plan.real.Exact(s.dir.real)
	if err != nil {
		return err
	}
	defer at.Close()
	return at.access()
}

// create is the state of a new object in the directory.
func (s *spot) create(kind Kind, mode uint32) Meta {
	s.plan.serial++
	now := time.Now()
	uid, gid := self()
	if s.dir.meta.Mode&0o2000 != 0 { // what is made in such a directory is of its group
		gid = s.dir.meta.GID
	}
	return Meta{
		Kind: kind, Mode: mode, UID: uid, GID: gid, Mtime: Time{now.Unix(), uint32(now.Nanosecond())},
		Dev: s.dir.meta.Dev, Ino: ^s.plan.serial, Links: 1,
	}
}

func (s *spot) mkdir(name string, attr Attr) error {
	_, err := s.object(name)
	if err == nil {
		return syscall.EEXIST
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.writable(); err != nil {
		return err
	}
	meta := s.create(Directory, 0o755)
	if err := meta.set(attr); err != nil {
		return err
	}
	s.dir.put(name, &planned{meta: meta})
	return nil
}

func (s *spot) symlink(name, target string) error {
	old, err := s.object(name)
	if err == nil && old.meta.Kind != Symlink {
		return fs.ErrExist
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.writable(); err != nil {
		return err
	}
	meta := s.create(Symlink, 0o777)
	meta.Target, meta.Size = target, int64(len(target))
	s.dir.put(name, &planned{meta: meta})
	return nil
}

func (s *spot) remove(name string, all bool) error {
	object, err := s.object(name)
	if err != nil {
		return err
	}
	if err := s.writable(); err != nil {
		return err
	}
	if object.meta.Kind == Directory && !all {
		names, err := s.plan.entries(object)
		if err != nil {
			return err
		}
		if len(names) > 0 {
			return syscall.ENOTEMPTY
		}
	}
	s.plan.unlink(s.dir, name)
	s.dir.put(name, nil)
	return nil
}

func (s *spot) noMountsBelow(name string) error {
	object, err := s.object(name)
	if err != nil || object.real == "" {
		return err
	}
	at, err := s.plan.real.Exact(object.real)
	if err != nil {
		return err
	}
	defer at.Close()
	return at.NoMountsBelow()
}

func (s *spot) rename(name string, to *spot, toName string, replace bool) error {
	object, err := s.object(name)
	if err != nil {
		return err
	}
	there, err := to.object(toName)
	switch {
	case err == nil && !replace:
		return syscall.EEXIST
	case err == nil && there.meta.Same(object.meta):
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case s.dir.meta.Dev != to.dir.meta.Dev:
		return crossDevice
	}
	if err := errors.Join(s.writable(), to.writable()); err != nil {
		return err
	}
	to.plan.unlink(to.dir, toName)
	s.dir.put(name, nil)
	to.dir.put(toName, object)
	return nil
}

// change changes the state of an object that is there.
func (s *spot) change(name string, change func(*Meta) error) error {
	object, err := s.object(name)
	if err != nil {
		return err
	}
	meta := object.meta
	if err := change(&meta); err != nil {
		return err
	}
	object.meta, object.other = meta, true
	s.dir.know(name, object)
	return nil
}

func (s *spot) setAttr(name string, attr Attr) error {
	return s.change(name, func(m *Meta) error {
		uid, _ := self()
		if uid != 0 && m.UID != uid {
			return syscall.EPERM
		}
		return m.set(attr)
	})
}

// set gives an object of the agent's own other attributes, as far as the kernel would.
func (m *Meta) set(attr Attr) error {
	uid, gid := or(attr.UID, m.UID), or(attr.GID, m.GID)
	if uid != m.UID || gid != m.GID {
		if err := mayGive(m, uid, gid); err != nil {
			return err
		}
		if m.Kind == File && m.Mode&0o111 != 0 {
			m.Mode &^= 0o6000
		}
		m.UID, m.GID = uid, gid
	}
	m.Mode = or(attr.Mode, m.Mode)
	return nil
}

func or(wanted *uint32, otherwise uint32) uint32 {
	if wanted != nil {
		return *wanted
	}
	return otherwise
}

func (s *spot) apply(name string, want Meta) error {
	return s.change(name, func(m *Meta) error { return m.become(want) })
}

// become takes over all that can be restored.
func (m *Meta) become(want Meta) error {
	if m.Kind != want.Kind {
		return fault.Wrapf(fault.ErrChanged, "is a %s, and was a %s", m.Kind, want.Kind)
	}
	if err := m.set(Attr{Mode: &want.Mode, UID: &want.UID, GID: &want.GID}); err != nil {
		return err
	}
	m.Xattrs, m.Mtime = want.Xattrs, want.Mtime
	return nil
}

// stage begins a file.
func (s *spot) stage() (*os.File, error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	return s.plan.newFile()
}

// finish puts a staged file in its place, with the state that dress makes of that of a new file.
func (s *spot) finish(name string, file *os.File, dress func(*Meta) error) error {
	meta := s.create(File, 0o600)
	err := dress(&meta)
	if err = errors.Join(err, fault.Cause(file.Close())); err != nil {
		return err
	}
	s.dir.put(name, &planned{meta: meta, file: file.Name()})
	return nil
}

// dressed is dress, for a file that nobody makes.
func dressed(meta *Meta, old Meta, attr Attr) error {
	want := Attr{Mode: new(uint32(0o644)), UID: attr.UID, GID: attr.GID}
	if old.Kind == File {
		meta.Xattrs = lasting(old.Xattrs)
		want = Attr{Mode: &old.Mode, UID: new(or(attr.UID, old.UID)), GID: new(or(attr.GID, old.GID))}
	}
	if attr.Mode != nil {
		want.Mode = attr.Mode
	}
	return meta.set(want)
}

// lasting are the extended attributes that stay true when the content changes.
func lasting(all map[string][]byte) map[string][]byte {
	kept := map[string][]byte{}
	for name, value := range all {
		switch name {
		case "security.capability", "security.ima", "security.evm":
		default:
			kept[name] = value
		}
	}
	return kept
}
