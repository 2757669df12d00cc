// Package registry reads and changes the registry of Windows.
//
//	registry.get, registry.set, registry.remove ─► one key, one value ◄── registry.restore ◄── journal
//
// A change is on the disk before the call returns. What is undone is what was there before: values with their types, keys with
// what is below them and who may use them, and keys that were made.
//
// Not here: how services start (service), files of the registry that are not loaded, and keys that Windows only makes up of
// others: HKCR, HKCU and HKCC.
package registry

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// kind is that of the objects in Access: their names are those of keys, which begin with HKLM or HKU, of the view of 32
// bits with HKLM32 or HKU32.
const kind = "registry"

// restoreOp is the inverse of all that the room does.
const restoreOp = "registry.restore"

// Room holds the operations. It is safe for concurrent use.
type Room struct{ guest *guest.Guest }

// New makes the room. A tree that is not booted has no registry.
func New(g *guest.Guest) *Room { return &Room{guest: g} }

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	return builtins.Room{Name: "registry", Scope: kind, Ops: []builtins.Op{
		{
			Name: "registry.get", Usage: "(key, [name])", Summary: "a value of the registry of Windows; nil where there is none",
			Access:  builtins.Of(func(in *pb.RegistryGetArgs) builtins.Access { return access(in.Key, in.View) }),
			Handler: builtins.Handle(r.get),
		},
		{
			Name: "registry.set", Usage: "(key, name, value, [type]) changed", Summary: "set a value of the registry, and make its key",
			Mutates: true, Predictable: true, Inverse: restoreOp,
			Access:  builtins.Of(func(in *pb.RegistrySetArgs) builtins.Access { return access(in.Key, in.View) }),
			Handler: builtins.Handle(r.set),
		},
		{
			Name: "registry.remove", Usage: "(key, [name]) changed", Summary: "remove a value of the registry, or a key",
			Mutates: true, Predictable: true, Inverse: restoreOp,
			Access:  builtins.Of(func(in *pb.RegistryRemoveArgs) builtins.Access { return access(in.Key, in.View) }),
			Handler: builtins.Handle(r.remove),
		},
		{
			Name: restoreOp, Usage: "(key)", Summary: "bring back what was in the registry before",
			Mutates: true, Internal: true,
			Access:  builtins.Of(func(in *pb.RegistryRestore) builtins.Access { return access(in.Key, in.View) }),
			Handler: builtins.Handle(r.restore),
		},
	}}
}

// access names the key of a request; what is no key as it was written: the operation refuses it.
func access(key string, view uint32) builtins.Access {
	name := key
	if p, err := parsePath(key, view); err == nil {
		name = p.String()
	}
	return builtins.Access{Objects: []builtins.Object{{Kind: kind, Name: name}}}
}

const (
	maxKeyName = 255 // characters of one key
	maxKeys    = 512 // levels
	view32     = 32
	view64     = 64
)

// path is a key.
type path struct {
	root string   // HKLM or HKU
	keys []string // at least one
	view uint32   // view32 or view64
}

// roots are the names of what keys are below.
var roots = map[string]string{
	"HKLM": "HKLM", "HKEY_LOCAL_MACHINE": "HKLM", "HKU": "HKU", "HKEY_USERS": "HKU",
	"HKCR": "", "HKEY_CLASSES_ROOT": "", "HKCU": "", "HKEY_CURRENT_USER": "", "HKCC": "", "HKEY_CURRENT_CONFIG": "",
}

// parsePath reads the name of a key, and which view it is of; 0: of 64 bits.
func parsePath(text string, view uint32) (path, error) {
	if view == 0 {
		view = view64
	}
	if view != view32 && view != view64 {
		return path{}, fault.Invalid("view is %d, and neither 32 nor 64", view)
	}
	words := strings.Split(strings.TrimSuffix(text, `\`), `\`)
	root, known := roots[strings.ToUpper(words[0])]
	switch {
	case known && root == "":
		return path{}, &fault.Error{
			Err:  fault.Invalid("%s is only a view of other keys", words[0]),
			Hint: `classes are below HKLM\SOFTWARE\Classes, and users by their SIDs below HKU`,
		}
	case !known:
		return path{}, fault.Invalid("%.60q is no key: it begins with neither HKLM nor HKU", text)
	case len(words) < 2 || len(words) > maxKeys:
		return path{}, fault.Invalid("%.60q is no key below %s", text, root)
	}
	for _, word := range words[1:] {
		if word == "" || utf8.RuneCountInString(word) > maxKeyName || !utf8.ValidString(word) ||
			strings.ContainsFunc(word, unicode.IsControl) {
			return path{}, fault.Invalid("%.60q is no key: one of its names is empty, too long or not text", text)
		}
	}
	return path{root: root, keys: words[1:], view: view}, nil
}

// String is the name by which needs and rules know the key.
func (p path) String() string {
	root := p.root
	if p.view == view32 {
		root += "32"
	}
	return root + `\` + p.below()
}

// below is the name below the root.
func (p path) below() string { return strings.Join(p.keys, `\`) }
