package inventory

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/packages"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	kind = "package" // that of the objects in Access: what a list is filtered by

	maxPage     = 8 << 20 // bytes of a page
	maxWarnings = 100
)

func softwareAccess(in *pb.ListInstalledSoftwareRequest) (access builtins.Access) {
	if in.Filter != "" {
		access.Objects = []builtins.Object{{Kind: kind, Name: in.Filter}}
	}
	return access
}

func (r *Room) software(
	ctx context.Context, call *builtins.Call, in *pb.ListInstalledSoftwareRequest,
) (*pb.ListInstalledSoftwareResponse, error) {
	if r.guest.Of(call) == nil {
		return nil, fault.Unsupported("there is no file system to look for packages in")
	}
	list, warnings, err := readPackages(ctx, packages.Of(r.guest, call), in.PackageType)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(p packages.Package) bool { return !wanted(in, p) })
	slices.SortFunc(list, func(a, b packages.Package) int {
		return cmp.Or(
			cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Arch, b.Arch), cmp.Compare(a.Version, b.Version),
		)
	})
	out := &pb.ListInstalledSoftwareResponse{Success: true, TotalCount: uint32(len(list)), Warnings: warnings}
	out.Software, out.NextOffset = page(list, in)
	return out, nil
}

// readPackages reads the databases of a type, or all. What cannot be read is a warning as long as something can.
func readPackages(
	ctx context.Context, from *packages.Reader, only string,
) (all []packages.Package, warnings []string, err error) {
	if only != "" && !slices.Contains(packages.Types(), only) {
		return nil, nil, fault.Invalid("package_type is %.40q, and none of %s", only, strings.Join(packages.Types(), ", "))
	}
	known := from.Known()
	if only != "" {
		known = slices.DeleteFunc(known, func(kind string) bool { return kind != only })
	}
	if len(known) == 0 {
		if only == "" {
			only = strings.Join(packages.Types(), ", ")
		}
		return nil, nil, fault.Unsupported("there is no database of installed packages of type %s", only)
	}
	var failed []error
	for _, kind := range known {
		list, notes, err := from.Read(ctx, kind)
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if err != nil {
			failed = append(failed, err)
			warnings = append(warnings, err.Error())
			continue
		}
		all, warnings = append(all, list...), append(warnings, notes...)
	}
	if len(failed) == len(known) {
		if len(failed) == 1 {
			return nil, nil, failed[0]
		}
		return nil, nil, errors.Join(failed...)
	}
	return all, warnings[:min(len(warnings), maxWarnings)], nil
}

// wanted reports whether a package is asked for.
func wanted(in *pb.ListInstalledSoftwareRequest, p packages.Package) bool {
	if p.State != packages.StateInstalled && !in.AllStates {
		return false
	}
	return in.Filter == "" || strings.Contains(strings.ToLower(p.Name), strings.ToLower(in.Filter))
}

// page returns the part of a list that is asked for, or what of it fits into one reply, and where the next begins.
func page(list []packages.Package, in *pb.ListInstalledSoftwareRequest) (out []*pb.InstalledSoftware, next uint32) {
	bytes := 0
	for i := int(min(uint64(in.Offset), uint64(len(list)))); i < len(list); i++ {
		p := list[i]
		info := &pb.InstalledSoftware{
			Name: p.Name, Version: p.Version, Publisher: p.Publisher, SizeBytes: p.Size, PackageType: p.Type,
			Architecture: p.Arch, State: p.State, Summary: p.Summary,
		}
		if !p.Installed.IsZero() {
			info.InstallDate = timestamppb.New(p.Installed)
		}
		bytes += proto.Size(info) + 6 // its tag and length
		if in.MaxEntries > 0 && len(out) >= int(in.MaxEntries) || bytes > maxPage && len(out) > 0 {
			return out, uint32(i)
		}
		out = append(out, info)
	}
	return out, 0
}
