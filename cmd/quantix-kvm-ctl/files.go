package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) catCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cat PATH…", Short: "print files of the guest", Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, paths []string) error {
			return a.with(c.Context(), func(ctx context.Context, c *client.Client) error {
				for _, p := range paths {
					if _, err := c.Pull(ctx, p, a.out, client.PullOptions{}); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func (a *app) pushCommand() *cobra.Command {
	var o client.PushOptions
	var mode uint32Octal
	var recursive bool
	c := &cobra.Command{
		Use: "push LOCAL… REMOTE", Short: "copy files to the guest", Args: args(cobra.MinimumNArgs(2)),
		Long: `Copies files to the guest. A file takes its place whole, when all of it has arrived. REMOTE may be a directory of the
guest. LOCAL may be - for standard input. With -r trees are copied: directories, files and their permissions; other
kinds of file are left out with a warning.`,
		RunE: func(c *cobra.Command, list []string) error {
			o.Mode = uint32(mode)
			return a.with(c.Context(), func(ctx context.Context, c *client.Client) error {
				t := &transfer{app: a, c: c, push: o}
				return t.pushAll(ctx, list[:len(list)-1], list[len(list)-1], recursive)
			})
		},
	}
	f := c.Flags()
	f.Var(&mode, "mode", "permissions, such as 0644 (default those of LOCAL)")
	f.StringVar(&o.Owner, "owner", "", "owner, by name or number")
	f.StringVar(&o.Group, "group", "", "group, by name or number")
	f.BoolVarP(&o.Parents, "parents", "p", false, "make missing directories")
	f.BoolVar(&o.SHA256, "sha256", false, "have the agent compare the SHA-256 before a file takes its place")
	f.BoolVarP(&recursive, "recursive", "r", false, "copy trees")
	return c
}

func (a *app) pullCommand() *cobra.Command {
	var recursive bool
	c := &cobra.Command{
		Use: "pull REMOTE… LOCAL", Short: "copy files from the guest", Args: args(cobra.MinimumNArgs(2)),
		Long: `Copies files from the guest. A file takes its place whole, when all of it has arrived. LOCAL may be a directory, or -
for standard output. With -r trees are copied: directories, files, links, and permissions.`,
		RunE: func(c *cobra.Command, list []string) error {
			return a.with(c.Context(), func(ctx context.Context, c *client.Client) error {
				t := &transfer{app: a, c: c}
				return t.pullAll(ctx, list[:len(list)-1], list[len(list)-1], recursive)
			})
		},
	}
	c.Flags().BoolVarP(&recursive, "recursive", "r", false, "copy trees")
	return c
}

// uint32Octal is a flag in octal.
type uint32Octal uint32

func (o *uint32Octal) String() string { return fmt.Sprintf("%04o", uint32(*o)) }
func (o *uint32Octal) Type() string   { return "octal" }
func (o *uint32Octal) Set(s string) error {
	var n uint32
	if _, err := fmt.Sscanf(s, "%o", &n); err != nil || strings.Trim(s, "01234567") != "" || n > 0o777 {
		return fmt.Errorf("%q is no permission such as 0644", s)
	}
	*o = uint32Octal(n)
	return nil
}

// transfer copies files.
type transfer struct {
	*app
	c    *client.Client
	push client.PushOptions
}

// bar shows progress on a terminal, and nothing elsewhere.
func (t *transfer) bar(name string, total int64) (client.Progress, func()) {
	f, ok := t.err.(*os.File)
	if !ok || t.quiet || t.json || !term.IsTerminal(int(f.Fd())) {
		return nil, func() {}
	}
	b := progressbar.NewOptions64(total, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(name),
		progressbar.OptionShowBytes(true), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionFullWidth(),
		progressbar.OptionOnCompletion(func() { fmt.Fprintln(f) }))
	return func(done, total int64) {
		if total > 0 && b.GetMax64() != total {
			b.ChangeMax64(total)
		}
		b.Set64(done)
	}, func() { b.Exit() }
}

// isDir asks whether a path of the guest is a directory.
func (t *transfer) isDir(ctx context.Context, p string) (bool, error) {
	reply, err := ask[*pb.FileStatResponse](ctx, t.c, &pb.FileStatRequest{Path: p})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if reply.Entry.GetIsSymlink() { // a link to a directory counts as one
		_, err := ask[*pb.ListDirectoryResponse](ctx, t.c, &pb.ListDirectoryRequest{Path: p, MaxEntries: 1})
		return err == nil, nil
	}
	return reply.Entry.GetIsDirectory(), nil
}

func (t *transfer) pushAll(ctx context.Context, locals []string, remote string, recursive bool) error {
	into, err := t.isDir(ctx, remote)
	if err != nil {
		return err
	}
	if into = into || strings.HasSuffix(remote, "/"); len(locals) > 1 && !into {
		return usageError{fmt.Errorf("%s is not a directory of the guest", remote)}
	}
	for _, local := range locals {
		to := remote
		if into {
			if local == "-" {
				return usageError{errors.New("standard input needs a file name in the guest")}
			}
			to = path.Join(remote, filepath.Base(local))
		}
		if err := t.pushOne(ctx, local, to, recursive); err != nil {
			return err
		}
	}
	return nil
}

func (t *transfer) pushOne(ctx context.Context, local, to string, recursive bool) error {
	if local == "-" {
		_, err := t.c.Push(ctx, to, t.in, t.push)
		return err
	}
	info, err := os.Stat(local)
	if err != nil {
		return err
	}
	if info.IsDir() {
		if !recursive {
			return usageError{fmt.Errorf("%s is a directory: give -r", local)}
		}
		return t.pushTree(ctx, local, to)
	}
	return t.pushFile(ctx, local, to)
}

func (t *transfer) pushTree(ctx context.Context, local, to string) error {
	return filepath.WalkDir(local, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(local, p)
		if err != nil {
			return err
		}
		target := path.Join(to, filepath.ToSlash(relative))
		switch {
		case d.IsDir():
			info, err := d.Info()
			if err != nil {
				return err
			}
			_, err = ask[*pb.CreateDirectoryResponse](ctx, t.c, &pb.CreateDirectoryRequest{Path: target, CreateParents: t.push.Parents, Mode: uint32(info.Mode().Perm())})
			return err
		case d.Type().IsRegular():
			return t.pushFile(ctx, p, target)
		}
		t.note("%s: left out: not a regular file or directory", p)
		return nil
	})
}

func (t *transfer) pushFile(ctx context.Context, local, to string) error {
	f, err := os.Open(local)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	o := t.push
	o.Size = info.Size()
	if o.Mode == 0 {
		o.Mode = uint32(info.Mode().Perm())
	}
	progress, end := t.bar(filepath.Base(local), info.Size())
	defer end()
	o.Progress = progress
	_, err = t.c.Push(ctx, to, f, o)
	return err
}

func (t *transfer) pullAll(ctx context.Context, remotes []string, local string, recursive bool) error {
	info, err := os.Stat(local)
	into := err == nil && info.IsDir()
	if len(remotes) > 1 && !into && local != "-" {
		return usageError{fmt.Errorf("%s is not a directory", local)}
	}
	for _, remote := range remotes {
		if local == "-" {
			if _, err := t.c.Pull(ctx, remote, t.out, client.PullOptions{}); err != nil {
				return err
			}
			continue
		}
		to := local
		if into {
			to = filepath.Join(local, path.Base(remote))
		}
		if err := t.pullOne(ctx, remote, to, recursive); err != nil {
			return err
		}
	}
	return nil
}

func (t *transfer) pullOne(ctx context.Context, remote, to string, recursive bool) error {
	dir, err := t.isDir(ctx, remote)
	if err != nil {
		return err
	}
	if !dir {
		return t.pullFile(ctx, remote, to)
	}
	if !recursive {
		return usageError{fmt.Errorf("%s is a directory: give -r", remote)}
	}
	return t.pullTree(ctx, remote, to)
}

func (t *transfer) pullTree(ctx context.Context, remote, to string) error {
	reply, err := ask[*pb.ListDirectoryResponse](ctx, t.c, &pb.ListDirectoryRequest{Path: remote, IncludeHidden: true})
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, e := range reply.Entries {
		if strings.ContainsAny(e.Name, "/\\") || e.Name == ".." || e.Name == "." {
			return fmt.Errorf("the guest lists a file named %q", e.Name)
		}
		here := filepath.Join(to, e.Name)
		switch {
		case e.IsSymlink:
			err = os.Symlink(e.SymlinkTarget, here)
			if errors.Is(err, fs.ErrExist) {
				if err = os.Remove(here); err == nil {
					err = os.Symlink(e.SymlinkTarget, here)
				}
			}
		case e.IsDirectory:
			if err = t.pullTree(ctx, e.Path, here); err == nil {
				err = os.Chmod(here, fs.FileMode(e.Mode).Perm())
			}
		default:
			err = t.pullFile(ctx, e.Path, here)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pullFile writes beside the target and renames, so that a transfer that breaks off leaves what was there.
func (t *transfer) pullFile(ctx context.Context, remote, to string) error {
	f, err := os.CreateTemp(filepath.Dir(to), "."+filepath.Base(to)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	progress, end := t.bar(path.Base(remote), -1)
	defer end()
	got, err := t.c.Pull(ctx, remote, f, client.PullOptions{Progress: progress})
	if err != nil {
		return err
	}
	if err := f.Chmod(fs.FileMode(got.Mode).Perm()); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), to)
}

func (a *app) lsCommand() *cobra.Command {
	var long, all bool
	c := &cobra.Command{
		Use: "ls [PATH…]", Short: "list directories of the guest", Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, paths []string) error {
			if len(paths) == 0 {
				paths = []string{"/"}
			}
			return a.with(c.Context(), func(ctx context.Context, c *client.Client) error {
				for _, p := range paths {
					reply, err := ask[*pb.ListDirectoryResponse](ctx, c, &pb.ListDirectoryRequest{Path: p, IncludeHidden: all || a.json})
					if err != nil {
						return err
					}
					if len(paths) > 1 && !a.json {
						fmt.Fprintf(a.out, "%s:\n", p)
					}
					if err := a.show(reply, func(w io.Writer) { entries(w, reply.Entries, long) }); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	c.Flags().BoolVarP(&long, "long", "l", false, "with permissions, owner, size and time")
	c.Flags().BoolVarP(&all, "all", "a", false, "also names that begin with a dot")
	return c
}

func entries(w io.Writer, list []*pb.DirectoryEntry, long bool) {
	for _, e := range list {
		if !long {
			fmt.Fprintln(w, e.Name)
			continue
		}
		kind := "-"
		switch {
		case e.IsSymlink:
			kind = "l"
		case e.IsDirectory:
			kind = "d"
		}
		name := e.Name
		if e.IsSymlink {
			name += " -> " + e.SymlinkTarget
		}
		fmt.Fprintf(w, "%s%s\t%s\t%s\t%d\t%s\t%s\n", kind, fs.FileMode(e.Mode).Perm().String()[1:], e.Owner, e.Group, e.SizeBytes,
			e.ModifiedAt.AsTime().Local().Format("2006-01-02 15:04"), name)
	}
}

func (a *app) statCommand() *cobra.Command {
	return &cobra.Command{
		Use: "stat PATH…", Short: "describe files of the guest", Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, paths []string) error {
			return a.with(c.Context(), func(ctx context.Context, c *client.Client) error {
				for _, p := range paths {
					reply, err := ask[*pb.FileStatResponse](ctx, c, &pb.FileStatRequest{Path: p})
					if err != nil {
						return err
					}
					e := reply.Entry
					if err := a.show(e, func(w io.Writer) {
						kind := "file"
						switch {
						case e.IsSymlink:
							kind = "link to " + e.SymlinkTarget
						case e.IsDirectory:
							kind = "directory"
						}
						fmt.Fprintf(w, "path\t%s\nkind\t%s\nsize\t%d\nmode\t%04o\nowner\t%s:%s\nmodified\t%s\n",
							e.Path, kind, e.SizeBytes, e.Mode, e.Owner, e.Group, e.ModifiedAt.AsTime().Local().Format(time.RFC3339Nano))
					}); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func (a *app) rmCommand() *cobra.Command {
	var recursive, force bool
	c := &cobra.Command{
		Use: "rm PATH…", Short: "remove files of the guest", Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, paths []string) error {
			return a.with(c.Context(), func(ctx context.Context, c *client.Client) error {
				for _, p := range paths {
					_, err := ask[*pb.FileDeleteResponse](ctx, c, &pb.FileDeleteRequest{Path: p, Recursive: recursive})
					if err != nil && !(force && errors.Is(err, fs.ErrNotExist)) {
						return err
					}
				}
				return nil
			})
		},
	}
	c.Flags().BoolVarP(&recursive, "recursive", "r", false, "remove directories with what is in them")
	c.Flags().BoolVarP(&force, "force", "f", false, "what does not exist is no failure")
	return c
}

func (a *app) mkdirCommand() *cobra.Command {
	var parents bool
	var mode uint32Octal
	c := &cobra.Command{
		Use: "mkdir PATH…", Short: "make directories in the guest", Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, paths []string) error {
			return a.with(c.Context(), func(ctx context.Context, c *client.Client) error {
				for _, p := range paths {
					if _, err := ask[*pb.CreateDirectoryResponse](ctx, c, &pb.CreateDirectoryRequest{Path: p, CreateParents: parents, Mode: uint32(mode)}); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	c.Flags().BoolVarP(&parents, "parents", "p", false, "make missing parents too")
	c.Flags().Var(&mode, "mode", "permissions of what is made, such as 0750 (default 0755)")
	return c
}
