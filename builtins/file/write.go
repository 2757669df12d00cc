package file

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (r *Room) write(ctx context.Context, call *builtins.Call, in *pb.WriteFileArgs) (*pb.Changed, error) {
	attr, err := r.attr(call, in.Mode, in.Owner, in.Group)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.put(ctx, call, edit.File{
		Op: "file.write", Path: in.Path, Attr: attr, Content: in.Content,
		Parents: in.Parents, Backup: in.Backup, InPlace: in.Inplace, Follow: in.Inplace,
	}, in.Validate)
}

func (r *Room) append(ctx context.Context, call *builtins.Call, in *pb.WriteFileArgs) (*pb.Changed, error) {
	attr, err := r.attr(call, in.Mode, in.Owner, in.Group)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.put(ctx, call, edit.File{
		Op: "file.append", Path: in.Path, Attr: attr, Content: in.Content,
		Parents: in.Parents, Backup: in.Backup, InPlace: in.Inplace, Follow: true, Append: true,
	}, in.Validate)
}

// put makes a file what it shall be. validate is the program that checks it before it is put in place; empty: none.
func (r *Room) put(ctx context.Context, call *builtins.Call, w edit.File, validate []string) (_ *pb.Changed, err error) {
	if w.Validate, err = r.validator(call, validate); err != nil {
		return nil, fault.On(w.Path, err)
	}
	return changed(r.edit.Put(ctx, call, w))
}

// changed is the reply of an operation that reports whether it changed anything.
func changed(changed bool, err error) (*pb.Changed, error) {
	if err != nil {
		return nil, err
	}
	return &pb.Changed{Changed: changed}, nil
}
