// Package guest is what every room is given of the machine that it acts on: its files, a way to run commands, and whether it
// is the running machine or a tree that is not booted.
//
// Not here: what a command means to a transaction (the room that runs it says so), and streamed or detached commands, which
// are the exec room's alone.
package guest

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// Guest is one machine, or one tree. It is safe for concurrent use.
type Guest struct {
	// Files is its file system; nil in a program that only lists the rooms. It stays the caller's.
	Files *fsys.Root
	// Dir is the directory of the agent's own file system that is "/" here; empty: "/".
	Dir string
	// Live says that it is the running machine that the agent is a process of, and not a tree that is not booted.
	Live bool
	// Runner runs commands. Nil: none can be run.
	Runner *proc.Runner
	// Protected are paths of the agent's own: neither they nor what is below them is changed, nor are directories above
	// them removed or moved. Optional.
	Protected []string
	// Answer stands for every command of a script, so that none is started: for tests of scripts. Nil: they run.
	Answer func(ctx context.Context, command Command) (*pb.RunResult, error)
}

// Command is a command of a script, and what it says of itself.
type Command struct {
	// Line is the command as a shell would read it.
	Line string
	// Undo says that a rollback runs it.
	Undo bool
	// Readonly, Touches and Irreversible are what it does to the guest.
	Readonly, Irreversible bool
	Touches                []string
}

// Root is Dir, or "/" for the agent's own file system, of which Windows has one root for each drive.
func (g *Guest) Root() string {
	if g.Dir == "" || fsys.IsRoot(g.Dir) {
		return "/"
	}
	return g.Dir
}

// Of returns the file system that a call acts on: the guest's, or what a dry run pretends it to be. What a path of the
// request led to when rules were held against it is what it leads to there, or the call fails.
func (g *Guest) Of(call *builtins.Call) *fsys.Root {
	files := g.Files
	if call.DryRun != nil {
		files = call.DryRun.Files
	}
	if files == nil {
		return nil
	}
	return files.WithChecked(call.Checked)
}

// Guard refuses to change what is the agent's own, by whatever name: a bind mount gives it others. path is a resolved
// one; whole says that what is below goes too.
func (g *Guest) Guard(path string, whole bool) error {
	var above []fsys.Meta
	known := !whole
	if known {
		above, known = g.upwards(path)
	}
	for _, text := range g.Protected {
		if known && g.apart(above, text) {
			continue
		}
		own, err := g.Files.Resolve(text, true)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if g.within(path, own) || whole && g.within(own, path) {
			return fault.Refuse("%s is the agent's own", own)
		}
	}
	return nil
}

// upwards describes what stands at a path and at each one above, as far as something does; false: that is not known.
func (g *Guest) upwards(path string) (list []fsys.Meta, ok bool) {
	for ; ; path = fsys.Parent(path) {
		meta, err := g.Files.Identify(path)
		switch {
		case err == nil && meta.Ino != 0:
			list = append(list, meta)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, false
		}
		if fsys.IsRoot(path) || path == "." {
			return list, true
		}
	}
}

// apart says that none of some objects, of which the last is the root, is what stands at a path now, and that none but the root
// is where a part of its file system is mounted. It is a quick look for what is true of nearly all: where it is false that says
// nothing.
func (g *Guest) apart(list []fsys.Meta, path string) bool {
	own, err := g.Files.Identify(path)
	if err != nil || own.Ino == 0 || slices.ContainsFunc(list, own.Same) {
		return false
	}
	return !slices.ContainsFunc(list[:max(len(list)-1, 0)], func(m fsys.Meta) bool { return m.Mounted && m.Dev == own.Dev })
}

// within reports whether a path is dir or below it, or what stands there is the object that stands at dir or below that.
func (g *Guest) within(path, dir string) bool {
	if fsys.Within(path, dir) {
		return true
	}
	want, err := g.Files.Identify(dir)
	if err != nil || want.Ino == 0 {
		return false
	}
	for above := path; ; above = fsys.Parent(above) {
		if have, err := g.Files.Identify(above); err == nil && have.Same(want) {
			return true
		}
		if fsys.IsRoot(above) || above == "." {
			return g.mountedWithin(path, dir, want)
		}
	}
}

// mountedWithin reports whether a path is below a mount of a part of dir, which is described as own: the directory itself is
// seen nowhere on the way to it. Below another root than the machine's it is not known where what is mounted above that begins.
func (g *Guest) mountedWithin(path, dir string, own fsys.Meta) bool {
	a, pathFrom, err := g.nearest(path)
	if err != nil {
		return false
	}
	defer a.Close()
	b, dirFrom, err := g.nearest(dir)
	if err != nil {
		return false
	}
	defer b.Close()
	if in, err := a.StatDir(); err != nil || in.Dev != own.Dev {
		if meta, err := a.Stat(); err != nil || meta.Dev != own.Dev {
			return false
		}
	}
	var mounts fsys.MountCache
	one, errA := mounts.Of(a)
	other, errB := mounts.Of(b)
	if errA != nil || errB != nil || len(one) == 0 || len(other) == 0 {
		return false
	}
	m, n := one[len(one)-1], other[len(other)-1]
	return m.Device == n.Device && m.Number != n.Number && fsys.Within(inside(m, pathFrom), inside(n, dirFrom))
}

// nearest returns the entry of a resolved path, or of the next one above it that is there.
func (g *Guest) nearest(path string) (at *fsys.At, from string, err error) {
	for {
		at, err = g.Files.Exact(path)
		if err == nil {
			if _, err = at.Stat(); err == nil {
				return at, path, nil
			}
			_ = at.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) || fsys.IsRoot(path) || path == "." {
			return nil, "", err
		}
		path = fsys.Parent(path)
	}
}

// inside is where a path on a mount is in the file system itself.
func inside(m fsys.Mount, path string) string {
	below, err := filepath.Rel(m.Point, path)
	if err != nil {
		return path
	}
	return fsys.Join(m.Dir, below)
}

// Run runs a command of a script to its end as spec says, or has it answered.
func (g *Guest) Run(ctx context.Context, command Command, spec proc.Spec) (*proc.Result, error) {
	if g.Answer != nil {
		answer, err := g.Answer(ctx, command)
		if err != nil {
			return nil, err
		}
		return &proc.Result{Code: int(answer.GetCode()), Stdout: answer.GetStdout(), Stderr: answer.GetStderr(), Tail: answer.GetStderr()}, nil
	}
	if g.Runner == nil {
		return nil, fault.Unsupported("no commands are run here")
	}
	return g.Runner.Run(ctx, spec)
}

// RunValidator is Run of a program that checks a new file, and changes nothing. Where it is held to that, and failed for what
// it may not write, or for what a service would have in /run, it runs once more with a view of its own of /run, /tmp and /var,
// which is thrown away. It does not have that view from the start, since there it sees no disk as it is; and no other command
// has it unless it asks for it, since in that view are directories of /run that are not there.
func (g *Guest) RunValidator(ctx context.Context, command Command, spec proc.Spec) (*proc.Result, error) {
	result, err := g.Run(ctx, command, spec)
	if err != nil || spec.Confine == nil || !missedView(result) {
		return result, err
	}
	spec.Confine = &proc.Confine{Private: true}
	return g.Run(ctx, command, spec)
}

// missedView reports whether a validator may have failed for want of a private view.
func missedView(result *proc.Result) bool {
	return result.Err() != nil && result.Signal == 0 && !result.TimedOut &&
		slices.ContainsFunc(viewTexts, func(text string) bool { return OutputContains(result, text) })
}

// ReadOnlyText is how programs report EROFS.
const ReadOnlyText = "Read-only file system"

// viewTexts are what programs say that may not write, or miss what is made in /run at boot, or when a service starts.
var viewTexts = []string{ReadOnlyText, "/run/", "/var/lock"}

// OutputContains reports whether a command wrote a text, as far as that was kept.
func OutputContains(result *proc.Result, text string) bool {
	return slices.ContainsFunc([][]byte{result.Stdout, result.Stderr, result.Tail}, func(b []byte) bool {
		return bytes.Contains(b, []byte(text))
	})
}

// CommandAccess is what a command would be to a policy: its program, where that is looked for, and what is put into its
// environment.
func CommandAccess(argv []string, env map[string]string, dir string) builtins.Command {
	c := builtins.Command{Argv: argv, Paths: proc.SearchPaths(env), Dir: dir}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		c.Env = append(c.Env, name+"="+env[name])
	}
	return c
}

// Quote writes arguments as a shell would read them.
func Quote(argv []string) string { return text.Quote(argv) }

// CheckUndo refuses exit codes and a test of an undo that cannot be meant.
func CheckUndo(codes []int32, test []string) error {
	for _, code := range codes {
		if code < 1 || code > 255 {
			return fault.Invalid("undo_ok: %d is not an exit code between 1 and 255", code)
		}
	}
	if len(test) > 0 && test[0] == "" {
		return fault.Invalid("undo_if has no program")
	}
	for _, arg := range test {
		if strings.Contains(arg, "\x00") {
			return fault.Invalid("a NUL byte in undo_if")
		}
	}
	return nil
}
