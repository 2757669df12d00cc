package netplan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// maxNames bounds the names in a directory that are read.
const maxNames = 10_000

// list returns the names in a directory, in order.
func list(files *fsys.Root, dir string) ([]string, error) {
	at, err := files.Follow(dir)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	open, err := at.OpenDir()
	if err != nil {
		return nil, err
	}
	defer open.Close()
	names, err := open.Names(maxNames)
	slices.Sort(names)
	return names, err
}

// filePaths are those of the files in the directories, as far as they can be listed.
func filePaths(files *fsys.Root) (paths []string, err error) {
	for _, dir := range dirs {
		names, e := list(files, dir)
		if e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, fault.On(dir, e))
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".yaml") && utf8.ValidString(name) {
				paths = append(paths, dir+"/"+name)
			}
		}
	}
	return paths, err
}

// checkedDocuments returns the documents for a call, each of which the rules have been asked about.
func (r *Room) checkedDocuments(ctx context.Context, call *builtins.Call) ([]*document, error) {
	all, err := documents(ctx, r.guest.Of(call))
	for _, d := range all {
		if err == nil && !call.Checked.IsAbout(d.path) {
			err = fault.On(d.path, fault.Wrapf(fault.ErrChanged, "it has come meanwhile"))
		}
	}
	return all, err
}

// documents are the files that netplan reads, in its order: of files of one name the one in the last directory alone. What
// cannot be parsed is there with its text; netplan's generator says what is wrong with it.
func documents(ctx context.Context, files *fsys.Root) ([]*document, error) {
	paths, err := filePaths(files)
	if err != nil {
		return nil, err
	}
	found := map[string]*document{}
	left := bounds{bytes: maxText, values: maxValues}
	for _, path := range paths {
		text, err := files.ReadFile(path, maxConfig)
		if errors.Is(err, fs.ErrNotExist) { // a link to nothing, or removed meanwhile
			continue
		}
		if err != nil {
			return nil, fault.On(path, err)
		}
		if err := left.take(ctx, text); err != nil {
			return nil, fault.On(path, err)
		}
		d, err := parse(path, text)
		if err != nil {
			d = &document{path: path, text: text}
		}
		found[baseName(path)] = d
	}
	var all []*document
	for _, d := range found {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b *document) int { return strings.Compare(baseName(a.path), baseName(b.path)) })
	return all, nil
}

func (r *Room) get(ctx context.Context, call *builtins.Call, in *pb.NetplanGetArgs) (*pb.LuaValue, error) {
	if err := r.served(); err != nil {
		return nil, err
	}
	get := r.checkedDocuments
	if in.Name != "" { // the access names that file alone, and the others are not shown
		get = func(ctx context.Context, call *builtins.Call) ([]*document, error) {
			return documents(ctx, r.guest.Of(call))
		}
	}
	all, err := get(ctx, call)
	if err != nil {
		return nil, err
	}
	text := func(d *document) *pb.LuaValue { return &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: d.text}} }
	if in.Name == "" {
		table := &pb.LuaTable{}
		for _, d := range all {
			table.Fields = append(table.Fields, &pb.LuaField{Key: []byte(strings.TrimSuffix(baseName(d.path), ".yaml")), Value: text(d)})
		}
		return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: table}}, nil
	}
	name, err := fileName(in.Name)
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		if baseName(d.path) == name {
			return text(d), nil
		}
	}
	return nil, fault.On(name, fault.Wrapf(fs.ErrNotExist, "netplan has no such file"))
}

// proposal is a file as it shall be, checked together with all others.
type proposal struct {
	file      *document
	conflicts []*pb.NetplanConflict
}

// propose checks a text as the file of a name.
func (r *Room) propose(ctx context.Context, call *builtins.Call, name string, text []byte) (*proposal, error) {
	d, err := parse(own+"/"+name, text)
	if err == nil {
		err = d.required()
	}
	if err != nil {
		return nil, fault.On(own+"/"+name, err)
	}
	all, err := r.checkedDocuments(ctx, call)
	if err != nil {
		return nil, err
	}
	if hidden := slices.IndexFunc(all, func(o *document) bool {
		return baseName(o.path) == name && !strings.HasPrefix(o.path, own+"/") && !strings.HasPrefix(o.path, dirs[0]+"/")
	}); hidden >= 0 {
		return nil, fault.On(d.path, fault.Refuse("%s goes before it, so nothing in it would hold", all[hidden].path))
	}
	others := slices.DeleteFunc(slices.Clone(all), func(o *document) bool { return baseName(o.path) == name })
	p := &proposal{file: d, conflicts: d.conflicts(others)}
	set := append(others, d)
	made, err := r.generate(ctx, set)
	if err != nil {
		if !errors.Is(err, fs.ErrInvalid) || len(all) == 0 {
			return nil, err
		}
		if _, before := r.generate(ctx, all); before != nil {
			return nil, fault.Wrapf(err, "%v (the files that are there are not good either: %v)", err, before)
		}
		return nil, err
	}
	return p, r.sensible(d, set, made)
}

func (r *Room) validate(ctx context.Context, call *builtins.Call, in *pb.NetplanValidateArgs) (*pb.NetplanValidated, error) {
	if err := r.served(); err != nil {
		return nil, err
	}
	if in.Name == "" {
		in = &pb.NetplanValidateArgs{Name: defaultFile, Config: in.Config}
	}
	name, err := fileName(in.Name)
	if err != nil {
		return nil, err
	}
	text, err := yamlOf(in.Config)
	if err != nil {
		return nil, err
	}
	p, err := r.propose(ctx, call, name, text)
	if err != nil {
		return nil, err
	}
	return &pb.NetplanValidated{Yaml: string(p.file.text), Conflicts: append(p.conflicts, p.file.ownConflicts()...)}, nil
}

func (r *Room) set(ctx context.Context, call *builtins.Call, in *pb.NetplanSetArgs) (*pb.Changed, error) {
	if err := r.served(); err != nil {
		return nil, err
	}
	text, err := yamlOf(in.Config)
	if err != nil {
		return nil, err
	}
	changed, err := r.put(ctx, call, "netplan.set", in.Name, text, in.Override)
	return &pb.Changed{Changed: changed}, err
}

// put has a file hold a text. One that holds it already is not checked again, but for what it says of others.
func (r *Room) put(ctx context.Context, call *builtins.Call, op, name string, text []byte, override bool) (bool, error) {
	name, err := fileName(name)
	if err != nil {
		return false, err
	}
	files := r.guest.Of(call)
	if err := mayTouch(files, name); err != nil {
		return false, err
	}
	w := edit.File{Op: op, Path: own + "/" + name, Content: text, Parents: true, Attr: fsys.Attr{Mode: new(uint32(0o600))}}
	there, err := r.holds(call, w)
	if err != nil || there {
		return false, err
	}
	if r.guest.Live && r.mayApply() == nil && call.DryRun == nil {
		r.system.prepare(ctx) // what is set is applied, most often, and the check takes longer than this
	}
	p, err := r.propose(ctx, call, name, text)
	if err != nil {
		return false, err
	}
	if len(p.conflicts) > 0 && !override {
		return false, conflicting(p)
	}
	if err := r.announceFiles(ctx, call); err != nil {
		return false, err
	}
	return r.edit.Put(ctx, call, w)
}

// holds reports whether a file is as it shall be.
func (r *Room) holds(call *builtins.Call, w edit.File) (bool, error) {
	c, err := r.edit.Begin(call, w.Op, w.Path, edit.Options{Parents: true})
	if err != nil {
		return false, fault.On(w.Path, err)
	}
	defer c.Close()
	if c.Old.Kind != fsys.File || edit.Differs(c.Old, w.Attr) || c.Old.Size != int64(len(w.Content)) {
		return false, nil
	}
	have, err := c.At.ReadFile(maxConfig)
	return string(have) == string(w.Content), fault.On(w.Path, err)
}

// conflicting is the error about what other files say of the same interfaces.
func conflicting(p *proposal) error {
	first := p.conflicts[0]
	more := ""
	if n := len(p.conflicts) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more)", n)
	}
	err := &fault.Error{
		Object: p.file.path,
		Err:    fault.Refuse("%s stands in line %d of %s as well: %s%s", first.Key, first.Line, first.File, first.Meaning, more),
		Hint:   "say override = true if that is meant",
	}
	if first.Hint != "" {
		err.Hint = first.Hint + "; or " + err.Hint
	}
	return err
}

func (r *Room) remove(ctx context.Context, call *builtins.Call, in *pb.NetplanRemoveArgs) (*pb.Changed, error) {
	if err := r.served(); err != nil {
		return nil, err
	}
	name, err := fileName(in.Name)
	if err != nil {
		return nil, err
	}
	path := own + "/" + name
	c, err := r.edit.Begin(call, "netplan.remove", path, edit.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return &pb.Changed{}, nil
	}
	if err != nil {
		return nil, fault.On(path, err)
	}
	if err := r.removable(ctx, call, c, name); err != nil || c.Absent() {
		c.Close()
		return &pb.Changed{}, err
	}
	return &pb.Changed{Changed: true}, takeAway(ctx, c)
}

// removable returns why a file must stay, and records its removal in the transaction.
func (r *Room) removable(ctx context.Context, call *builtins.Call, c *edit.Change, name string) error {
	switch {
	case c.Absent():
		return nil
	case c.Old.Kind == fsys.Directory:
		return fault.On(c.Path, fault.Refuse("it is a directory"))
	}
	files := r.guest.Of(call)
	if err := mayTouch(files, name); err != nil {
		return err
	}
	all, err := r.checkedDocuments(ctx, call)
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(all), func(d *document) bool { return d.path == own+"/"+name })
	if _, err := r.generate(ctx, left); err != nil {
		if _, before := r.generate(ctx, all); before == nil { // else the removal may be the repair
			return fault.On(c.Path, fault.Wrapf(err, "the other files need it: %v", err))
		} else if errors.Is(before, errors.ErrUnsupported) {
			return before
		}
	}
	return r.announceFiles(ctx, call)
}

func takeAway(ctx context.Context, c *edit.Change) (err error) {
	defer c.End(&err)
	if err := c.Prepare(ctx); err != nil {
		return err
	}
	if err := c.At.Remove(); err != nil {
		return err
	}
	if err := c.SyncDir(c.At); err != nil {
		return err
	}
	c.Report("deleted", edit.Hidden())
	return nil
}

// announceFiles records in the transaction what follows when the files are restored.
func (r *Room) announceFiles(ctx context.Context, call *builtins.Call) error {
	if call.Tx == nil || call.DryRun != nil || r.mayApply() != nil {
		return nil
	}
	undo := &pb.NetplanUndo{Action: pb.NetplanUndo_ACTION_FILES, BootId: facts.BootID()}
	links, err := r.system.links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Kind == "physical" {
			undo.Links = append(undo.Links, &pb.NetplanLinkBefore{Name: l.Name, Mac: l.MAC})
		}
	}
	return call.Tx.Undo(ctx, undoRow, undo)
}

// configure is the request of a host. Its file is netplan's, whoever is the renderer.
func (r *Room) configure(
	ctx context.Context, call *builtins.Call, in *pb.ConfigureNetworkRequest,
) (*pb.ConfigureNetworkResponse, error) {
	err := r.served()
	if err == nil && in.ApplyNow && r.guest.Live {
		err = r.mayApply()
	}
	if err != nil {
		return nil, err
	}
	reply := &pb.ConfigureNetworkResponse{Success: true}
	if in.ConfirmSeconds > 0 {
		if call.Confirm == nil {
			return nil, fault.Unsupported("nothing can be confirmed here")
		}
		err := call.Confirm(time.Duration(in.ConfirmSeconds)*time.Second, func(id string, until time.Time) {
			reply.TransactionId, reply.ConfirmUntil = id, timestamppb.New(until)
		})
		if err != nil {
			return nil, err
		}
	}
	if reply.Changed, err = r.put(ctx, call, "configure_network", hostFile, []byte(in.NetplanConfig), in.Override); err != nil {
		return nil, err
	}
	if !in.ApplyNow {
		return reply, nil
	}
	applied, err := r.apply(ctx, call, &pb.NetplanApplyArgs{Verify: in.Verify})
	if err != nil {
		return nil, err
	}
	reply.Changed, reply.Steps = reply.Changed || applied.Changed, applied.Steps
	return reply, nil
}
