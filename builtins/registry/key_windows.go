package registry

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	maxValue = 1 << 20 // bytes of a value
	maxTree  = 1 << 20 // bytes of a key with all that is below it, as it is kept to be undone
	maxDepth = 64

	linkType = 6 // REG_LINK
	openLink = 8 // REG_OPTION_OPEN_LINK
)

// advapi32 are calls that x/sys has no functions for.
func advapi32(name string) *windows.LazyProc {
	return windows.NewLazySystemDLL("advapi32.dll").NewProc(name)
}

// failed is the error of a call that returns one.
func failed(code uintptr) error {
	if code == 0 {
		return nil
	}
	return fault.Cause(windows.Errno(code))
}

// wow is the view of a path, for the access of a key.
func (p path) wow() uint32 {
	if p.view == view32 {
		return registry.WOW64_32KEY
	}
	return registry.WOW64_64KEY
}

func (p path) rootKey() registry.Key {
	if p.root == "HKU" {
		return registry.USERS
	}
	return registry.LOCAL_MACHINE
}

// open opens a key; fs.ErrNotExist: there is none.
func (p path) open(access uint32) (registry.Key, error) {
	key, err := registry.OpenKey(p.rootKey(), p.below(), access|p.wow())
	return key, notExist(err)
}

// create opens a key, and makes it where it is missing, with those above it.
func (p path) create(access uint32) (registry.Key, error) {
	key, _, err := registry.CreateKey(p.rootKey(), p.below(), access|p.wow())
	return key, fault.Cause(err)
}

// notExist makes the error of what is not there that of the standard library.
func notExist(err error) error {
	if errors.Is(err, windows.ERROR_FILE_NOT_FOUND) || errors.Is(err, windows.ERROR_PATH_NOT_FOUND) ||
		errors.Is(err, windows.ERROR_KEY_DELETED) {
		return fault.Wrapf(fs.ErrNotExist, "there is no such key")
	}
	return fault.Cause(err)
}

// parent is the key above; false: that is a root.
func (p path) parent() (path, bool) {
	if len(p.keys) == 1 {
		return path{}, false
	}
	p.keys = p.keys[:len(p.keys)-1]
	return p, true
}

// exists reports whether there is a key.
func (p path) exists() (bool, error) {
	key, err := p.open(registry.QUERY_VALUE)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, key.Close()
}

// missing is the outermost key that would have to be made for p; false: p is there.
func (p path) missing(exists func(path) (bool, error)) (outermost path, missing bool, err error) {
	for at, more := p, true; more; at, more = at.parent() {
		there, err := exists(at)
		if err != nil {
			return p, false, fault.On(at.String(), err)
		}
		if there {
			break
		}
		outermost, missing = at, true
	}
	return outermost, missing, nil
}

// readValue reads a value; nil: there is none.
func readValue(key registry.Key, name string) (*value, error) {
	for size := 4096; ; {
		buffer := make([]byte, size)
		n, kind, err := key.GetValue(name, buffer)
		switch {
		case err == nil:
			return &value{kind, buffer[:n]}, nil
		case errors.Is(err, registry.ErrNotExist):
			return nil, nil
		case !errors.Is(err, registry.ErrShortBuffer):
			return nil, fault.Cause(err)
		case n > maxValue:
			return nil, fault.Wrapf(fault.ErrTooLarge, "the value has %d bytes, more than %d", n, maxValue)
		}
		size = max(n, 2*size)
	}
}

// writeValue stores a value.
func writeValue(key registry.Key, name string, v *value) error {
	text, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return fault.Invalid("the name has a zero byte")
	}
	var data *byte
	if len(v.data) > 0 {
		data = &v.data[0]
	}
	code, _, _ := advapi32("RegSetValueExW").Call(uintptr(key), uintptr(unsafe.Pointer(text)), 0, uintptr(v.kind),
		uintptr(unsafe.Pointer(data)), uintptr(len(v.data)))
	return failed(code)
}

// flush has what was changed below a key written to the disk.
func flush(key registry.Key) error {
	code, _, _ := advapi32("RegFlushKey").Call(uintptr(key))
	return failed(code)
}

// flushRoot is flush for what was changed at the roots themselves.
func (p path) flushRoot() error { return flush(p.rootKey()) }

// deleteEmpty removes a key that has no others below it.
func (p path) deleteEmpty() error {
	name, err := windows.UTF16PtrFromString(p.below())
	if err != nil {
		return err
	}
	code, _, _ := advapi32("RegDeleteKeyExW").Call(uintptr(p.rootKey()), uintptr(unsafe.Pointer(name)), uintptr(p.wow()), 0)
	return notExist(failed(code))
}

// deleteTree removes a key with all that is below it. That one is gone already is no error.
func (p path) deleteTree(depth int) error {
	if depth > maxDepth {
		return fault.Wrapf(fault.ErrTooLarge, "there are more than %d levels below it", maxDepth)
	}
	key, err := p.open(registry.ENUMERATE_SUB_KEYS)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.On(p.String(), err)
	}
	names, err := key.ReadSubKeyNames(-1)
	key.Close()
	if err != nil {
		return fault.On(p.String(), fault.Cause(err))
	}
	for _, name := range names {
		if err := p.child(name).deleteTree(depth + 1); err != nil {
			return err
		}
	}
	if err := p.deleteEmpty(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.On(p.String(), err)
	}
	return nil
}

func (p path) child(name string) path {
	p.keys = append(slices.Clip(p.keys), name)
	return p
}

// isEmpty reports whether a key has neither values nor keys below it.
func (p path) isEmpty() (bool, error) {
	key, err := p.open(registry.QUERY_VALUE)
	if err != nil {
		return false, err
	}
	defer key.Close()
	info, err := key.Stat()
	return err == nil && info.SubKeyCount == 0 && info.ValueCount == 0, fault.Cause(err)
}

// readTree reads a key with all that is below it. left is how many bytes it may have.
func (p path) readTree(left *int, depth int) (*pb.RegistryKey, error) {
	if depth > maxDepth {
		return nil, fault.Wrapf(fault.ErrTooLarge, "there are more than %d levels below it", maxDepth)
	}
	if err := p.refuseLink(); err != nil {
		return nil, fault.On(p.String(), err)
	}
	key, err := p.open(registry.READ)
	if err != nil {
		return nil, fault.On(p.String(), err)
	}
	defer key.Close()
	out := &pb.RegistryKey{Name: p.keys[len(p.keys)-1], Security: readSecurity(key)}
	names, err := key.ReadValueNames(-1)
	if err != nil {
		return nil, fault.On(p.String(), fault.Cause(err))
	}
	*left -= len(out.Name) + len(out.Security) + 32
	for _, name := range names {
		v, err := readValue(key, name)
		if err != nil {
			return nil, fault.On(p.String(), err)
		}
		if v == nil {
			continue // it went meanwhile
		}
		if *left -= len(name) + len(v.data) + 32; *left < 0 {
			return nil, fault.Wrapf(fault.ErrTooLarge, "more than %d bytes would have to be kept to undo it", maxTree)
		}
		out.Values = append(out.Values, &pb.RegistryValue{Name: name, Type: v.kind, Data: v.data})
	}
	keys, err := key.ReadSubKeyNames(-1)
	if err != nil {
		return nil, fault.On(p.String(), fault.Cause(err))
	}
	for _, name := range keys {
		below, err := p.child(name).readTree(left, depth+1)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out.Keys = append(out.Keys, below)
	}
	return out, nil
}

// refuseLink refuses a key that leads to another one: what is below is not below this one.
func (p path) refuseLink() error {
	name, err := windows.UTF16PtrFromString(p.below())
	if err != nil {
		return err
	}
	var handle windows.Handle
	if err := windows.RegOpenKeyEx(windows.Handle(p.rootKey()), name, openLink, registry.QUERY_VALUE|p.wow(),
		&handle); err != nil {
		return notExist(err)
	}
	defer windows.RegCloseKey(handle)
	if v, err := readValue(registry.Key(handle), "SymbolicLinkValue"); err == nil && v != nil && v.kind == linkType {
		return fault.Refuse("it is a link to another key")
	}
	return nil
}

// writeTree makes a key what it was. What others have put there since stays.
func (p path) writeTree(was *pb.RegistryKey) error {
	key, err := p.create(registry.ALL_ACCESS)
	if err != nil {
		return fault.On(p.String(), err)
	}
	defer key.Close()
	for _, v := range was.Values {
		if err := writeValue(key, v.Name, &value{v.Type, v.Data}); err != nil {
			return fault.On(p.String(), err)
		}
	}
	for _, below := range was.Keys {
		if strings.Contains(below.Name, `\`) {
			return fault.Wrapf(fault.ErrCorrupt, "%q is no name of a key", below.Name)
		}
		if err := p.child(below.Name).writeTree(below); err != nil {
			return err
		}
	}
	return fault.On(p.String(), writeSecurity(key, was.Security))
}

const securityParts = windows.OWNER_SECURITY_INFORMATION | windows.GROUP_SECURITY_INFORMATION |
	windows.DACL_SECURITY_INFORMATION

// readSecurity returns who may do what with a key; empty: it cannot be read.
func readSecurity(key registry.Key) string {
	sd, err := windows.GetSecurityInfo(windows.Handle(key), windows.SE_REGISTRY_KEY, securityParts)
	if err != nil {
		return ""
	}
	return sd.String()
}

// writeSecurity says who may do what with a key, unless it is so already.
func writeSecurity(key registry.Key, sddl string) error {
	if sddl == "" || readSecurity(key) == sddl {
		return nil
	}
	sd, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		return fault.Wrapf(fault.ErrCorrupt, "its security %.60q: %v", sddl, err)
	}
	owner, _, ownerErr := sd.Owner()
	group, _, groupErr := sd.Group()
	dacl, _, daclErr := sd.DACL()
	if err := errors.Join(ownerErr, groupErr, daclErr); err != nil {
		return fault.Wrapf(fault.ErrCorrupt, "its security: %v", err)
	}
	parts := windows.SECURITY_INFORMATION(securityParts)
	if control, _, err := sd.Control(); err == nil && control&windows.SE_DACL_PROTECTED != 0 {
		parts |= windows.PROTECTED_DACL_SECURITY_INFORMATION
	}
	return fault.Cause(windows.SetSecurityInfo(windows.Handle(key), windows.SE_REGISTRY_KEY, parts, owner, group, dacl, nil))
}
