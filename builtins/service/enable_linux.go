package service

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// files returns the tree that a call acts on, and whose units are in it.
func (r *Room) files(call *builtins.Call) (tree, system, error) {
	t, by := r.manages(r.guest.Of(call))
	if by == none {
		return t, none, errNone
	}
	return t, by, nil
}

// manages says what manages services in a tree.
func (r *Room) manages(files *fsys.Root) (tree, system) {
	t := tree{files}
	if files == nil {
		return t, none
	}
	switch live := r.live(); {
	case live != none:
		return t, live
	case t.hasUnits():
		return t, bySystemd
	case t.isDir(openrcLevels) && t.isDir(openrcInit):
		return t, byOpenRC
	}
	return t, none
}

// enable makes the links by which a unit starts with the guest.
func (r *Room) enable(ctx context.Context, call *builtins.Call, op string, u unit) (changed bool, err error) {
	t, by, err := r.files(call)
	if err != nil {
		return false, err
	}
	if by == byOpenRC {
		return r.addToLevel(ctx, call, op, t, u)
	}
	links, err := t.links(u)
	if err != nil {
		return false, err
	}
	for _, l := range links {
		dir := fsys.Parent(l.path)
		did, err := r.edit.Symlink(ctx, call, edit.Link{
			Op: op, Path: l.path, Target: l.target, Parents: true,
			Same: func(target string) bool { return fsys.Base(leads(dir, target)) == fsys.Base(l.target) },
		})
		if err != nil {
			return changed, err
		}
		changed = changed || did
	}
	return changed, r.isEnabled(t, u)
}

// isEnabled sees that a unit is enabled, or enables others alone (Also).
func (r *Room) isEnabled(t tree, u unit) error {
	have, err := t.state(u)
	if err == nil && have != "enabled" && have != "indirect" {
		err = fault.Refuse("it is %s still", have)
	}
	return err
}

// disable removes all links of the administrator to a unit, but for one that masks it.
func (r *Room) disable(ctx context.Context, call *builtins.Call, op string, u unit) (changed bool, err error) {
	t, by, err := r.files(call)
	if err != nil {
		return false, err
	}
	if by == byOpenRC {
		return r.removeFromLevels(ctx, call, op, t, u)
	}
	f, err := t.find(u)
	if errors.Is(err, fs.ErrNotExist) { // the link of an alias is there only as long as the unit is enabled
		if own := t.aliased(ctx, u); own != nil {
			f, err = own, nil
		}
	}
	if err != nil {
		return false, err
	}
	units := map[unit]*found{u: f}
	if !f.masked { // whose file is not seen
		for _, text := range f.install.also {
			if also, err := expand(text, f.name(u)); err == nil {
				if f, err := t.find(unit(also)); err == nil {
					units[unit(also)] = f
				}
			}
		}
	}
	for u, f := range units {
		for _, path := range t.enabledBy(f, u) {
			did, err := r.edit.RemoveLink(ctx, call, op, path)
			if err != nil {
				return changed, err
			}
			changed = changed || did
		}
	}
	return changed, nil
}

// mask puts a link to nothing in the place of a unit's file.
func (r *Room) mask(ctx context.Context, call *builtins.Call, op string, u unit) (bool, error) {
	t, path, err := r.maskOf(call, u)
	if err != nil {
		return false, err
	}
	kind, target, err := t.what(path)
	switch {
	case err != nil:
		return false, err
	case kind == fsys.Absent:
		if _, err := t.find(u); err != nil && !errors.Is(err, errors.ErrUnsupported) { // what is generated is masked as well
			return false, err
		}
	case kind == fsys.Symlink && leads(systemDir, target) == nullDevice:
		return false, nil
	default:
		return false, fault.On(path, fault.Wrapf(fs.ErrExist, "its own file is there, which a mask would replace"))
	}
	return r.edit.Symlink(ctx, call, edit.Link{Op: op, Path: path, Target: nullDevice, Parents: true})
}

// unmask removes that link.
func (r *Room) unmask(ctx context.Context, call *builtins.Call, op string, u unit) (bool, error) {
	t, path, err := r.maskOf(call, u)
	if err != nil {
		return false, err
	}
	kind, target, err := t.what(path)
	if err != nil {
		return false, err
	}
	if kind == fsys.Symlink && leads(systemDir, target) == nullDevice {
		return r.edit.RemoveLink(ctx, call, op, path)
	}
	f, err := t.find(u)
	if err == nil && f.masked {
		err = fault.Refuse("it is masked by %s", f.path)
	}
	return false, err
}

func (r *Room) maskOf(call *builtins.Call, u unit) (tree, string, error) {
	t, by, err := r.files(call)
	if err == nil && by == byOpenRC {
		err = fault.Unsupported("OpenRC masks no services")
	}
	return t, systemDir + "/" + string(u), err
}

// fileState is the state of a unit by its files: it does not run.
func (r *Room) fileState(call *builtins.Call, u unit) (*state, error) {
	t, by, err := r.files(call)
	if err != nil {
		return nil, err
	}
	s := &state{unit: u, load: "loaded", active: "inactive", sub: "dead"}
	if by == byOpenRC {
		name, err := t.script(u)
		if err != nil {
			return nil, err
		}
		if s.file = "disabled"; len(t.levels(name)) > 0 {
			s.file = "enabled"
		}
		return s, nil
	}
	if s.file, err = t.state(u); strings.HasPrefix(s.file, "masked") {
		s.load = "masked"
	}
	return s, err
}

// script returns the name of an OpenRC service that is there.
func (t tree) script(u unit) (string, error) {
	name, err := script(u)
	if err != nil {
		return "", err
	}
	kind, _, err := t.what(openrcInit + "/" + name)
	if err == nil && kind == fsys.Absent {
		err = fault.Wrapf(fs.ErrNotExist, "there is no such service")
	}
	return name, err
}

// levels are the runlevels that a service of OpenRC is in.
func (t tree) levels(name string) (list []string) {
	for _, level := range t.names(openrcLevels) {
		if kind, _, err := t.what(openrcLevels + "/" + level + "/" + name); err == nil && kind != fsys.Absent {
			list = append(list, level)
		}
	}
	return list
}

// addToLevel makes the link that rc-update add makes.
func (r *Room) addToLevel(ctx context.Context, call *builtins.Call, op string, t tree, u unit) (bool, error) {
	name, err := t.script(u)
	if err != nil || len(t.levels(name)) > 0 {
		return false, err
	}
	return r.edit.Symlink(ctx, call, edit.Link{
		Op: op, Path: openrcLevels + "/" + openrcLevel + "/" + name, Target: openrcInit + "/" + name, Parents: true,
	})
}

// removeFromLevels removes the links that rc-update delete --all removes.
func (r *Room) removeFromLevels(ctx context.Context, call *builtins.Call, op string, t tree, u unit) (changed bool, err error) {
	name, err := t.script(u)
	if err != nil {
		return false, err
	}
	for _, level := range t.levels(name) {
		did, err := r.edit.RemoveLink(ctx, call, op, openrcLevels+"/"+level+"/"+name)
		if err != nil {
			return changed, err
		}
		changed = changed || did
	}
	return changed, nil
}
