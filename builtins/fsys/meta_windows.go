package fsys

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// The extended attributes that stand for what Windows keeps of an object beside its content. The journal stores them.
const (
	securityXattr   = "windows.security"   // owner, group and access list, in the text form of security descriptors (SDDL)
	attributesXattr = "windows.attributes" // the bits of keptAttributes
)

// bornTells: NTFS counts in the number itself how often that was given, and the time of creation can be set.
const bornTells = false

// keptAttributes are those of the attributes that can be set.
const keptAttributes = windows.FILE_ATTRIBUTE_READONLY | windows.FILE_ATTRIBUTE_HIDDEN | windows.FILE_ATTRIBUTE_SYSTEM |
	windows.FILE_ATTRIBUTE_ARCHIVE | windows.FILE_ATTRIBUTE_NOT_CONTENT_INDEXED

// securityKept is what of a security descriptor is kept: not the list for auditing, which takes a privilege of its own.
const securityKept = windows.OWNER_SECURITY_INFORMATION | windows.GROUP_SECURITY_INFORMATION | windows.DACL_SECURITY_INFORMATION

// object is an open file or directory, or the reparse point itself.
type object struct {
	windows.Handle
	path string
}

// openObject opens what is at a path with an access, without following it.
func openObject(path string, access uint32) (object, error) {
	name, err := windows.UTF16PtrFromString(longPath(path))
	if err != nil {
		return object{}, err
	}
	h, err := windows.CreateFile(name, access, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE, nil,
		windows.OPEN_EXISTING, windows.FILE_FLAG_BACKUP_SEMANTICS|windows.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if err != nil {
		return object{}, fault.Cause(err)
	}
	return object{h, path}, nil
}

func (o object) close() { windows.CloseHandle(o.Handle) }

// stat describes the object. What is a reparse point but no link is refused: what it means is not known.
func (o object) stat() (Meta, error) {
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(o.Handle, &info); err != nil {
		return Meta{}, fault.Cause(err)
	}
	meta := Meta{
		Kind: File, Mode: 0o666, Size: int64(info.FileSizeHigh)<<32 | int64(info.FileSizeLow), Mtime: timeOf(info.LastWriteTime),
		Dev: uint64(info.VolumeSerialNumber), Ino: uint64(info.FileIndexHigh)<<32 | uint64(info.FileIndexLow),
		Links: info.NumberOfLinks, Born: timeOf(info.CreationTime),
	}
	if info.FileAttributes&windows.FILE_ATTRIBUTE_READONLY != 0 {
		meta.Mode = 0o444
	}
	if info.FileAttributes&windows.FILE_ATTRIBUTE_DIRECTORY != 0 {
		meta.Kind, meta.Mode, meta.Size = Directory, meta.Mode|0o111, 0
	}
	if info.FileAttributes&windows.FILE_ATTRIBUTE_REPARSE_POINT == 0 {
		return meta, nil
	}
	entry, err := os.Lstat(o.path)
	if err != nil {
		return Meta{}, fault.Cause(err)
	}
	switch {
	case entry.Mode()&os.ModeSymlink != 0:
		meta.Kind, meta.Size = Symlink, 0
		meta.Target, err = os.Readlink(o.path)
		return meta, fault.Cause(err)
	case entry.Mode()&os.ModeIrregular != 0:
		return Meta{}, fault.Refuse("is a reparse point that is no link")
	}
	return meta, nil // such as a file that is stored elsewhere, and looks like any other
}

func timeOf(f windows.Filetime) Time {
	t := time.Unix(0, f.Nanoseconds())
	return Time{t.Unix(), uint32(t.Nanosecond())}
}

// changeTime returns nothing: of a file that nobody else may write to, see Stage, the time of its content is enough.
func changeTime(*os.File) (Time, error) { return Time{}, nil }

func statAt(dir handle, name string) (Meta, error) {
	o, err := openObject(filepath.Join(dir, name), windows.FILE_READ_ATTRIBUTES)
	if err != nil {
		return Meta{}, err
	}
	defer o.close()
	return o.stat()
}

func statFile(file *os.File) (Meta, error) {
	return object{windows.Handle(file.Fd()), file.Name()}.stat()
}

// captureAt refuses a file with more streams than its content: a copy would lose them.
func captureAt(dir handle, name string) (Meta, error) {
	path := filepath.Join(dir, name)
	o, err := openObject(path, windows.FILE_READ_ATTRIBUTES|windows.READ_CONTROL)
	if err != nil {
		return Meta{}, err
	}
	defer o.close()
	meta, err := o.stat()
	if err != nil || meta.Kind == Symlink {
		return meta, err
	}
	if stream := otherStream(path); stream != "" {
		return meta, fault.Refuse("has the alternate data stream %q, which could not be kept", stream)
	}
	meta.Xattrs, err = o.state()
	return meta, err
}

// state returns the attributes and the security descriptor of the object. On a file system without them there is none.
func (o object) state() (map[string][]byte, error) {
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(o.Handle, &info); err != nil {
		return nil, fault.Cause(err)
	}
	xattrs := map[string][]byte{attributesXattr: binary.LittleEndian.AppendUint32(nil, info.FileAttributes&keptAttributes)}
	security, err := windows.GetSecurityInfo(o.Handle, windows.SE_FILE_OBJECT, securityKept)
	switch {
	case err == nil:
		xattrs[securityXattr] = []byte(security.String())
	case !errors.Is(err, windows.ERROR_NOT_SUPPORTED) && !errors.Is(err, windows.ERROR_INVALID_FUNCTION):
		return nil, fault.Cause(err)
	}
	return xattrs, nil
}

// setState gives an object what state returned of one. An owner that the agent may not give is left out only where it is the
// object's already.
func setState(path string, xattrs map[string][]byte) error {
	if text, ok := xattrs[securityXattr]; ok {
		if err := setSecurity(path, string(text)); err != nil {
			return err
		}
	}
	raw, ok := xattrs[attributesXattr]
	if !ok || len(raw) != 4 {
		return nil
	}
	name, err := windows.UTF16PtrFromString(longPath(path))
	if err != nil {
		return err
	}
	now, err := windows.GetFileAttributes(name)
	if err != nil {
		return fault.Cause(err)
	}
	want := now&^keptAttributes&settable | binary.LittleEndian.Uint32(raw)
	if want == 0 {
		want = windows.FILE_ATTRIBUTE_NORMAL
	}
	return fault.Cause(windows.SetFileAttributes(name, want))
}

// settable are the attributes that SetFileAttributes takes.
const settable = keptAttributes | windows.FILE_ATTRIBUTE_TEMPORARY | windows.FILE_ATTRIBUTE_OFFLINE

func setSecurity(path, text string) error {
	o, err := openObject(path, windows.READ_CONTROL|windows.WRITE_DAC|windows.FILE_READ_ATTRIBUTES)
	if err != nil {
		return err
	}
	defer o.close()
	if now, err := windows.GetSecurityInfo(o.Handle, windows.SE_FILE_OBJECT, securityKept); err == nil && now.String() == text {
		return nil
	}
	want, err := windows.SecurityDescriptorFromString(text)
	if err != nil {
		return fault.Invalid("security descriptor %q: %v", text, err)
	}
	list, _, err := want.DACL()
	if err != nil {
		return fault.Cause(err)
	}
	what := windows.SECURITY_INFORMATION(windows.DACL_SECURITY_INFORMATION | windows.UNPROTECTED_DACL_SECURITY_INFORMATION)
	if control, _, err := want.Control(); err == nil && control&windows.SE_DACL_PROTECTED != 0 {
		what = windows.DACL_SECURITY_INFORMATION | windows.PROTECTED_DACL_SECURITY_INFORMATION
	}
	if err := windows.SetSecurityInfo(o.Handle, windows.SE_FILE_OBJECT, what, nil, nil, list, nil); err != nil {
		return fault.Cause(err)
	}
	return setOwner(path, want)
}

// setOwner sets owner and group where they are others.
func setOwner(path string, want *windows.SECURITY_DESCRIPTOR) error {
	o, err := openObject(path, windows.READ_CONTROL)
	if err != nil {
		return err
	}
	defer o.close()
	now, err := windows.GetSecurityInfo(o.Handle, windows.SE_FILE_OBJECT, securityKept)
	if err != nil {
		return fault.Cause(err)
	}
	owner, _, _ := want.Owner()
	group, _, _ := want.Group()
	nowOwner, _, _ := now.Owner()
	nowGroup, _, _ := now.Group()
	if same(owner, nowOwner) && same(group, nowGroup) {
		return nil
	}
	err = windows.SetNamedSecurityInfo(longPath(path), windows.SE_FILE_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.GROUP_SECURITY_INFORMATION, owner, group, nil, nil)
	return fault.Cause(err)
}

func same(a, b *windows.SID) bool { return a == nil || b != nil && a.Equals(b) }

var (
	kernel32        = windows.NewLazySystemDLL("kernel32.dll")
	findFirstStream = kernel32.NewProc("FindFirstStreamW")
	findNextStream  = kernel32.NewProc("FindNextStreamW")
)

// otherStream returns the name of a stream that a file has beside its content; "" where it has none, or cannot have any. Where
// a file came from, which Windows notes in such a stream, does not count.
func otherStream(path string) string {
	name, err := windows.UTF16PtrFromString(longPath(path))
	if err != nil || findFirstStream.Find() != nil {
		return ""
	}
	var found struct {
		size int64
		name [windows.MAX_PATH + 36]uint16
	}
	h, _, _ := findFirstStream.Call(uintptr(unsafe.Pointer(name)), 0, uintptr(unsafe.Pointer(&found)), 0)
	if windows.Handle(h) == windows.InvalidHandle {
		return ""
	}
	defer windows.FindClose(windows.Handle(h))
	for {
		switch stream := windows.UTF16ToString(found.name[:]); stream {
		case "::$DATA", ":Zone.Identifier:$DATA", "":
		default:
			return stream
		}
		if ok, _, _ := findNextStream.Call(h, uintptr(unsafe.Pointer(&found))); ok == 0 {
			return ""
		}
	}
}

func applyAt(dir handle, name string, meta Meta) error {
	path := filepath.Join(dir, name)
	if meta.Kind == Symlink {
		return nil
	}
	if err := os.Chmod(path, os.FileMode(meta.Mode&0o777)|0o200); err != nil { // so that the rest can be set
		return fault.Cause(err)
	}
	if err := os.Chtimes(path, meta.Mtime.Time(), meta.Mtime.Time()); err != nil {
		return fault.Cause(err)
	}
	if err := setState(path, meta.Xattrs); err != nil {
		return err
	}
	if meta.Xattrs[attributesXattr] == nil {
		return fault.Cause(os.Chmod(path, os.FileMode(meta.Mode&0o777)))
	}
	return nil
}

func setAttrFile(dir handle, name string, _ *os.File, attr Attr) error {
	return setAttr(dir, name, File, attr)
}

func applyFile(dir handle, name string, _ *os.File, meta Meta) error { return applyAt(dir, name, meta) }

// copyAttrs gives a new file the access list and the attributes of the one that it replaces.
func copyAttrs(_ handle, file *os.File, old Meta, attr Attr) error {
	if attr.UID != nil || attr.GID != nil {
		return unsupported("an owner")
	}
	if old.Kind == File {
		if err := setState(file.Name(), old.Xattrs); err != nil {
			return err
		}
	}
	return setAttr(filepath.Dir(file.Name()), filepath.Base(file.Name()), File, attr)
}

// isReadOnly reports whether an object has the attribute that forbids to replace it.
func isReadOnly(path string) bool {
	meta, err := statAt(filepath.Dir(path), filepath.Base(path))
	return err == nil && meta.Kind == File && meta.Mode&0o200 == 0
}

// moveWait is how long a file is waited for that another holds open and is to be replaced.
const moveWait = 300 * time.Millisecond

// moveFile renames a file, durably. With replace it takes the place of another one in one step, also of one that is read-only,
// which nobody would be kept from changing elsewhere.
func moveFile(from, to string, replace bool) error {
	flags := uint32(windows.MOVEFILE_WRITE_THROUGH)
	if replace {
		flags |= windows.MOVEFILE_REPLACE_EXISTING
	}
	source, err := windows.UTF16PtrFromString(longPath(from))
	if err != nil {
		return err
	}
	target, err := windows.UTF16PtrFromString(longPath(to))
	if err != nil {
		return err
	}
	err = windows.MoveFileEx(source, target, flags)
	for end := time.Now().Add(moveWait); replace && !isReadOnly(to) && time.Now().Before(end) &&
		(errors.Is(err, windows.ERROR_ACCESS_DENIED) || errors.Is(err, windows.ERROR_SHARING_VIOLATION)); {
		time.Sleep(5 * time.Millisecond) // somebody looks at it, or replaces it as well
		err = windows.MoveFileEx(source, target, flags)
	}
	switch {
	case err == nil:
		return nil
	case !replace || !errors.Is(err, syscall.Errno(windows.ERROR_ACCESS_DENIED)) || !isReadOnly(to):
		return held(err, from, to)
	}
	if err := os.Chmod(to, 0o666); err != nil {
		return fault.Cause(err)
	}
	if err := windows.MoveFileEx(source, target, flags); err != nil {
		return errors.Join(held(err, from, to), fault.Cause(os.Chmod(to, 0o444)))
	}
	return nil
}
