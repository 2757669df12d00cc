package file

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// maxElements is how many names one answer to a script holds: the protocol's bound for elements of a message.
const maxElements = 10_000

// maxListed is how many entries file.list describes: each is nine values, and an answer has some 65,000.
const maxListed = 7_000

// maxRead is the most bytes of a file that a script reads: what one answer takes, 8 MiB, less what stands around it.
const maxRead = 8<<20 - 64

func (r *Room) read(ctx context.Context, call *builtins.Call, in *pb.ReadFileArgs) (*pb.Content, error) {
	content, err := r.readWhole(ctx, call, in.Path)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return &pb.Content{Content: content}, nil
}

func (r *Room) readWhole(ctx context.Context, call *builtins.Call, path string) ([]byte, error) {
	at, err := r.guest.Of(call).Follow(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	meta, err := at.Stat()
	if err == nil {
		err = builtins.Large(ctx, meta.Size)
	}
	if err != nil {
		return nil, err
	}
	return at.ReadFile(maxRead)
}

func (r *Room) exists(_ context.Context, call *builtins.Call, in *pb.PathArgs) (*pb.Exists, error) {
	_, err := lstat(r.guest.Of(call), in.Path)
	switch fault.Code(err) {
	case "", "not_found", "not_directory":
		return &pb.Exists{Exists: err == nil}, nil
	}
	return nil, fault.On(in.Path, err)
}

func lstat(root *fsys.Root, path string) (fsys.Meta, error) {
	at, err := root.At(path)
	if err != nil {
		return fsys.Meta{}, err
	}
	defer at.Close()
	return at.Stat()
}

func (r *Room) stat(_ context.Context, call *builtins.Call, in *pb.PathArgs) (*pb.FileInfo, error) {
	meta, err := lstat(r.guest.Of(call), in.Path)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	accounts, err := r.guest.Of(call).Accounts()
	if err != nil {
		return nil, err
	}
	return info(in.Path, meta, accounts), nil
}

// info describes an object to a script. Directories have size 0: each file system has its own idea of it.
func info(at string, meta fsys.Meta, accounts *fsys.Accounts) *pb.FileInfo {
	i := &pb.FileInfo{
		Name: fsys.Base(at), Path: at, Type: typeOf(meta.Kind), Mode: octal(meta.Mode),
		Owner: accounts.UserName(meta.UID), Group: accounts.GroupName(meta.GID),
		Mtime:  float64(meta.Mtime.Sec) + float64(meta.Mtime.Nsec)/1e9,
		Target: text.EscapePath(meta.Target),
	}
	if meta.Kind != fsys.Directory {
		i.Size = uint64(meta.Size)
	}
	return i
}

// typeOf is a kind as scripts know it.
func typeOf(kind fsys.Kind) string {
	if kind == fsys.BlockDevice || kind == fsys.CharDevice {
		return "device"
	}
	return string(kind)
}

// names lists a directory, escaped and sorted, without what is the journal's own.
func names(dir *fsys.Dir) ([]string, error) {
	list, err := dir.Names(maxListed)
	list = slices.DeleteFunc(list, func(name string) bool { return strings.HasPrefix(name, builtins.SpoolPrefix) })
	for i, name := range list {
		list[i] = text.EscapePath(name)
	}
	sort.Strings(list)
	return list, err
}

// openDir opens a directory, through a safe link too.
func openDir(root *fsys.Root, path string) (*fsys.Dir, error) {
	at, err := root.Follow(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	return at.OpenDir()
}

// listedSize is how many bytes a list takes for each byte of the directory's own size.
const listedSize = 8

func (r *Room) list(ctx context.Context, call *builtins.Call, in *pb.PathArgs) (*pb.FileList, error) {
	dir, err := openDir(r.guest.Of(call), in.Path)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	defer dir.Close()
	meta, err := dir.Stat(".")
	if err == nil {
		err = builtins.Large(ctx, listedSize*meta.Size)
	}
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	list, err := names(dir)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	accounts, err := r.guest.Of(call).Accounts()
	if err != nil {
		return nil, err
	}
	out := &pb.FileList{}
	for _, name := range list {
		meta, err := dir.Stat(text.UnescapePath(name))
		switch {
		case errors.Is(err, fs.ErrNotExist): // gone meanwhile
			continue
		case err != nil:
			return nil, fault.On(child(in.Path, name), err)
		}
		out.Entries = append(out.Entries, info(child(in.Path, name), meta, accounts))
	}
	return out, context.Cause(ctx)
}

// child puts a name after the path of a directory as the caller wrote it.
func child(dir, name string) string { return strings.TrimRight(dir, "/") + "/" + name }

// glob expands a pattern element by element. A name that begins with a dot is matched by a dot alone, and by a slash at the end
// only a directory. What cannot be looked into is left out, as is what is behind a link that is not safe.
func (r *Room) glob(ctx context.Context, call *builtins.Call, in *pb.GlobArgs) (*pb.Paths, error) {
	if !fsys.IsAbs(in.Pattern) {
		return nil, fault.On(in.Pattern, fault.Invalid("the pattern is relative; give it from the root on"))
	}
	pattern, err := text.Glob(filepath.ToSlash(in.Pattern))
	if err != nil {
		return nil, fault.On(in.Pattern, fault.Invalid("%v", err))
	}
	if filepath.Separator == '\\' && strings.Contains(pattern, `\`) { // which a class that holds "]" or "-" got
		return nil, fault.On(in.Pattern, fault.Invalid("is no pattern"))
	}
	if fsys.IsRoot(pattern) {
		return &pb.Paths{Paths: []string{fsys.Clean(pattern)}}, nil
	}
	found := []string{filepath.VolumeName(pattern)}
	for _, element := range fsys.Elements(fsys.Clean(pattern)) {
		var next []string
		for _, dir := range found {
			if err := context.Cause(ctx); err != nil {
				return nil, err
			}
			if next = appendMatches(ctx, next, r.guest.Of(call), dir, element); len(next) > maxElements {
				return nil, fault.On(in.Pattern, fault.Wrapf(fault.ErrTooLarge, "more than %d paths match", maxElements))
			}
		}
		found = next
	}
	if strings.HasSuffix(pattern, "/") {
		found = slices.DeleteFunc(found, func(path string) bool { return !isDir(r.guest.Of(call), path) })
	}
	sort.Strings(found)
	return &pb.Paths{Paths: found}, nil
}

// isDir reports whether a path leads to a directory.
func isDir(root *fsys.Root, path string) bool {
	meta, err := root.Stat(path)
	return err == nil && meta.Kind == fsys.Directory
}

// appendMatches appends the paths in a directory that an element of a pattern stands for, and stops after the bound.
func appendMatches(ctx context.Context, list []string, root *fsys.Root, dir, element string) []string {
	if !strings.ContainsAny(element, `*?[\`) {
		if _, err := lstat(root, dir+"/"+element); err != nil {
			return list
		}
		return append(list, dir+"/"+element)
	}
	open, err := openDir(root, dir+"/")
	if err != nil {
		return list
	}
	defer open.Close()
	_ = open.Each(func(name string) error {
		ok, _ := fsys.Match(text.UnescapePath(element), name) // a byte that is no text is one letter
		if ok && (name[0] != '.' || element[0] == '.' && !strings.HasPrefix(name, builtins.SpoolPrefix)) {
			if list = append(list, dir+"/"+text.EscapePath(name)); len(list) > maxElements {
				return fault.ErrTooLarge
			}
		}
		return context.Cause(ctx)
	})
	return list
}

func (r *Room) sha256(ctx context.Context, call *builtins.Call, in *pb.PathArgs) (*pb.Digest, error) {
	sum, err := digest(ctx, r.guest.Of(call), in.Path)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return &pb.Digest{Sha256: sum}, nil
}

func digest(ctx context.Context, root *fsys.Root, path string) (string, error) {
	at, err := root.Follow(path)
	if err != nil {
		return "", err
	}
	defer at.Close()
	file, err := at.Open()
	if err != nil {
		return "", err
	}
	defer file.Close()
	return digestOf(ctx, file)
}

// digestOf reads a file from its beginning to its end, wherever it stands.
func digestOf(ctx context.Context, file *os.File) (string, error) {
	sum := sha256.New()
	const step = 4 << 20
	for offset := int64(0); ; offset += step {
		if err := context.Cause(ctx); err != nil {
			return "", err
		}
		n, err := io.Copy(sum, io.NewSectionReader(file, offset, step))
		if err != nil {
			return "", fault.Cause(err)
		}
		if n < step {
			return hex.EncodeToString(sum.Sum(nil)), nil
		}
	}
}

func (r *Room) attachment(_ context.Context, call *builtins.Call, in *pb.AttachmentArgs) (*pb.Content, error) {
	content, err := []byte(nil), fs.ErrNotExist
	if call.Attachment != nil {
		content, err = call.Attachment(in.Name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fault.Wrapf(fs.ErrNotExist, "no attachment of this name came with the script")
	}
	if err != nil {
		return nil, fault.On(in.Name, err)
	}
	return &pb.Content{Content: content}, nil
}
