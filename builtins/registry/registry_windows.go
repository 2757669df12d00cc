package registry

import (
	"context"
	"errors"
	"io/fs"

	"golang.org/x/sys/windows/registry"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// pathOf reads the key of a request.
func (r *Room) pathOf(key string, view uint32) (path, error) {
	if !r.guest.Live {
		return path{}, fault.Unsupported("the registry is that of the running Windows, not of a tree that is not booted")
	}
	return parsePath(key, view)
}

// lookUp returns a value, and whether there is its key.
func (p path) lookUp(name string) (v *value, keyThere bool, err error) {
	key, err := p.open(registry.QUERY_VALUE)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer key.Close()
	v, err = readValue(key, name)
	return v, true, err
}

// shown is what people call a value.
func (p path) shown(name string) string {
	if name == "" {
		name = "(default)"
	}
	return p.String() + ": " + name
}

func (r *Room) get(_ context.Context, call *builtins.Call, in *pb.RegistryGetArgs) (*pb.LuaValue, error) {
	p, err := r.pathOf(in.Key, in.View)
	if err != nil {
		return nil, err
	}
	v, _, err := pretended(call).lookUp(p, in.Name)
	if err != nil {
		return nil, fault.On(p.shown(in.Name), err)
	}
	if v == nil {
		return &pb.LuaValue{}, nil
	}
	if in.Raw {
		return stringValue(v.data), nil
	}
	out, err := v.decode()
	return out, fault.On(p.shown(in.Name), err)
}

func (r *Room) set(ctx context.Context, call *builtins.Call, in *pb.RegistrySetArgs) (*pb.Changed, error) {
	p, err := r.pathOf(in.Key, in.View)
	if err != nil {
		return nil, err
	}
	changed, err := p.set(ctx, call, in)
	return &pb.Changed{Changed: changed}, fault.On(p.shown(in.Name), err)
}

func (p path) set(ctx context.Context, call *builtins.Call, in *pb.RegistrySetArgs) (bool, error) {
	now := pretended(call)
	have, keyThere, err := now.lookUp(p, in.Name)
	if err != nil {
		return false, err
	}
	want, err := encode(in.Value, in.Type, have)
	switch {
	case err != nil:
		return false, err
	case len(want.data) > maxValue:
		return false, fault.Wrapf(fault.ErrTooLarge, "the value has %d bytes, more than %d", len(want.data), maxValue)
	case keyThere && have.same(want):
		return false, nil
	}
	action := "created"
	if have != nil {
		action = "modified"
	}
	change := &pb.Change{Op: "registry.set", Target: p.shown(in.Name), Action: action}
	if call.DryRun != nil {
		now.set(p, in.Name, want)
		call.ReportApplied(change)
		return true, nil
	}
	if err := p.announceValue(ctx, call, in.Name, have); err != nil {
		return false, err
	}
	key, err := p.create(registry.SET_VALUE | registry.QUERY_VALUE)
	if err != nil {
		return false, err
	}
	defer key.Close()
	if err := writeValue(key, in.Name, want); err != nil {
		return false, err
	}
	if err := flush(key); err != nil {
		return false, err
	}
	if got, err := readValue(key, in.Name); err != nil || !want.same(got) {
		return false, errors.Join(fault.Wrapf(fault.ErrChanged, "it is not what was written"), err)
	}
	call.ReportApplied(change)
	return true, nil
}

// announceValue records in the transaction what is there before a value is changed.
func (p path) announceValue(ctx context.Context, call *builtins.Call, name string, have *value) error {
	if call.Tx == nil {
		return nil
	}
	was := &pb.RegistryRestore{Key: p.root + `\` + p.below(), View: p.view, Value: &pb.RegistryValue{Name: name}}
	if have != nil {
		was.Had, was.Value.Type, was.Value.Data = true, have.kind, have.data
	}
	outermost, missing, err := p.missing(path.exists)
	if err != nil {
		return err
	}
	if missing {
		was.Made = outermost.root + `\` + outermost.below()
	}
	return call.Tx.Undo(ctx, restoreOp, was)
}

func (r *Room) remove(ctx context.Context, call *builtins.Call, in *pb.RegistryRemoveArgs) (*pb.Changed, error) {
	p, err := r.pathOf(in.Key, in.View)
	if err != nil {
		return nil, err
	}
	if in.Name != nil {
		if in.Recursive {
			return nil, fault.On(p.shown(*in.Name), fault.Invalid("a value has nothing below it: recursive is for keys"))
		}
		changed, err := p.removeValue(ctx, call, *in.Name)
		return &pb.Changed{Changed: changed}, fault.On(p.shown(*in.Name), err)
	}
	changed, err := p.removeKey(ctx, call, in.Recursive)
	return &pb.Changed{Changed: changed}, fault.On(p.String(), err)
}

func (p path) removeValue(ctx context.Context, call *builtins.Call, name string) (bool, error) {
	now := pretended(call)
	have, _, err := now.lookUp(p, name)
	if err != nil || have == nil {
		return false, err
	}
	change := &pb.Change{Op: "registry.remove", Target: p.shown(name), Action: "deleted"}
	if call.DryRun != nil {
		now.set(p, name, nil)
		call.ReportApplied(change)
		return true, nil
	}
	if err := p.announceValue(ctx, call, name, have); err != nil {
		return false, err
	}
	if err := p.deleteValue(name); err != nil {
		return false, err
	}
	call.ReportApplied(change)
	return true, nil
}

// deleteValue removes a value. That it is gone already is no error.
func (p path) deleteValue(name string) error {
	key, err := p.open(registry.SET_VALUE)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer key.Close()
	if err := key.DeleteValue(name); err != nil && !errors.Is(err, registry.ErrNotExist) {
		return fault.Cause(err)
	}
	return flush(key)
}

func (p path) removeKey(ctx context.Context, call *builtins.Call, recursive bool) (bool, error) {
	if len(p.keys) < 2 {
		return false, fault.Refuse("it is a part of Windows")
	}
	now := pretended(call)
	there, err := now.exists(p)
	if err != nil || !there {
		return false, err
	}
	change := &pb.Change{Op: "registry.remove", Target: p.String(), Action: "deleted"}
	if call.DryRun != nil {
		empty, err := now.isEmpty(p)
		if err == nil && !empty && !recursive {
			err = errNotEmpty()
		}
		if err != nil {
			return false, err
		}
		now.removeKey(p)
		call.ReportApplied(change)
		return true, nil
	}
	empty, err := p.isEmpty()
	if err == nil && !empty && !recursive {
		err = errNotEmpty()
	}
	if err != nil {
		return false, err
	}
	left := maxTree
	was, err := p.readTree(&left, 0)
	if err != nil {
		return false, err
	}
	if call.Tx != nil {
		err := call.Tx.Undo(ctx, restoreOp, &pb.RegistryRestore{Key: p.root + `\` + p.below(), View: p.view, Tree: was})
		if err != nil {
			return false, err
		}
	}
	if err := p.deleteTree(0); err != nil {
		return false, err
	}
	if err := p.flushParent(); err != nil {
		return false, err
	}
	if there, err := p.exists(); err != nil || there {
		return false, errors.Join(fault.Wrapf(fault.ErrChanged, "it is there still"), err)
	}
	call.ReportApplied(change)
	return true, nil
}

func errNotEmpty() error {
	return &fault.Error{Err: fault.Refuse("it has values or keys"), Hint: "recursive = true removes them as well"}
}

// flushParent has the removal of a key written to the disk.
func (p path) flushParent() error {
	parent, ok := p.parent()
	if !ok {
		return p.flushRoot()
	}
	key, err := parent.open(registry.QUERY_VALUE)
	if err != nil {
		return err
	}
	defer key.Close()
	return flush(key)
}

// restore is the inverse. It bears that nothing was changed, and that it did its work already.
func (r *Room) restore(_ context.Context, _ *builtins.Call, in *pb.RegistryRestore) (*pb.Changed, error) {
	p, err := parsePath(in.Key, in.View)
	if err != nil {
		return nil, err
	}
	if in.Tree != nil {
		if err := p.writeTree(in.Tree); err != nil {
			return nil, err
		}
		return &pb.Changed{Changed: true}, fault.On(p.String(), p.flushParent())
	}
	if in.Value == nil {
		return nil, fault.Wrapf(fault.ErrCorrupt, "neither a value nor a key is to be restored")
	}
	if err := p.restoreValue(in); err != nil {
		return nil, fault.On(p.shown(in.Value.Name), err)
	}
	return &pb.Changed{Changed: true}, nil
}

func (p path) restoreValue(in *pb.RegistryRestore) error {
	if !in.Had {
		if err := p.deleteValue(in.Value.Name); err != nil {
			return err
		}
		return p.unmake(in.Made)
	}
	key, err := p.create(registry.SET_VALUE | registry.QUERY_VALUE)
	if err != nil {
		return err
	}
	defer key.Close()
	if err := writeValue(key, in.Value.Name, &value{in.Value.Type, in.Value.Data}); err != nil {
		return err
	}
	return flush(key)
}

// unmake removes keys that were made, from the innermost to the outermost. One into which others have put something stays.
func (p path) unmake(outermost string) error {
	if outermost == "" {
		return nil
	}
	last, err := parsePath(outermost, p.view)
	if err != nil {
		return err
	}
	for at, more := p, true; more && len(at.keys) >= len(last.keys); at, more = at.parent() {
		empty, err := at.isEmpty()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !empty {
			return fault.Wrapf(fault.ErrChanged, "%s was made, and others have put something into it", at)
		}
		if err := at.deleteEmpty(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return last.flushParent()
}
