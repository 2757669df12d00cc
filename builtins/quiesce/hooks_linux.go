package quiesce

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// Arguments of hooks. The first two are QEMU's convention, the third is VMware's: it goes to hooks that have the word in their
// text, and all others get the thaw where the freeze fails.
const (
	phaseFreeze = "freeze"
	phaseThaw   = "thaw"
	phaseFail   = "freezeFail"
)

const (
	hookTime   = 20 * time.Second // one hook has
	hookOutput = 1024             // bytes of its output are reported
	maxHook    = 1 << 20          // bytes of a hook that are read
	luaHook    = ".lua"
	bundled    = "bundled:"

	// legacyFreezeHooks and legacyThawHooks are where hooks of an agent that this one replaces are.
	legacyFreezeHooks = "/etc/limiquantix/pre-freeze.d"
	legacyThawHooks   = "/etc/limiquantix/post-thaw.d"
)

// hook is a program, or a script, that runs before a freeze and after its end.
type hook struct {
	name string // its file, or its name after "bundled:"
	file string // resolved; empty: it is the agent's own
}

// base is the name by which hooks of the two directories belong together, and by which an administrator replaces a bundled one.
func (h hook) base() string { return strings.TrimPrefix(filepath.Base(h.name), bundled) }

// hooksFor returns the hooks that a request has run before the freeze.
func (r *Room) hooksFor(in *pb.QuiesceFilesystemsRequest) ([]hook, error) {
	own := r.config.FreezeHooks
	if dir := in.PreFreezeScriptDir; dir != "" && filepath.Clean(dir) != filepath.Clean(own) {
		return nil, fault.On(dir, fault.Refuse("hooks are in %s alone", own))
	}
	if !in.RunPreFreezeScripts {
		return nil, nil
	}
	hooks, err := r.readHooks(own, legacyFreezeHooks)
	if err != nil || r.config.Bundled == nil {
		return hooks, err
	}
	entries, err := fs.ReadDir(r.config.Bundled, ".")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if h := (hook{name: bundled + e.Name()}); !slices.ContainsFunc(hooks, func(has hook) bool { return has.base() == h.base() }) {
			hooks = append(hooks, h)
		}
	}
	return hooks, nil
}

// readHooks returns the hooks in directories, in the order of their names, directory by directory. What others than root could
// have put there is an error.
func (r *Room) readHooks(dirs ...string) (hooks []hook, err error) {
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fault.On(dir, err)
		}
		if err := r.checkOwners(dir); err != nil {
			return nil, err
		}
		for _, e := range entries {
			name := filepath.Join(dir, e.Name())
			file, err := filepath.EvalSymlinks(name)
			if err != nil {
				return nil, fault.On(name, err)
			}
			info, err := os.Stat(file)
			if err != nil {
				return nil, fault.On(name, err)
			}
			if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 && filepath.Ext(name) != luaHook || strings.HasPrefix(e.Name(), ".") {
				continue // such as a README
			}
			if err := r.checkOwners(file); err != nil {
				return nil, fault.On(name, fault.Wrapf(err, "is refused as a hook: %v", err))
			}
			hooks = append(hooks, hook{name, file})
		}
	}
	return hooks, nil
}

// checkOwners refuses what others than root, or the agent's own user, can replace or write to: the object, and each directory
// above.
func (r *Room) checkOwners(path string) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for at := path; ; at = filepath.Dir(at) {
		if r.trusted != "" && at == filepath.Clean(r.trusted) {
			return nil
		}
		info, err := os.Lstat(at)
		if err != nil {
			return fault.On(at, err)
		}
		owner := info.Sys().(*syscall.Stat_t).Uid
		switch {
		case owner != 0 && int(owner) != os.Geteuid():
			return fault.On(at, fault.Refuse("it belongs to user %d, and not to root", owner))
		case info.Mode().Perm()&0o022 != 0:
			return fault.On(at, fault.Refuse("others than root may write to it (mode %04o)", info.Mode().Perm()))
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

// freezeHooks runs each hook for the freeze, one after the other. The first that fails is the last one. Which hooks run is
// noted, for this agent and for the next, before they do.
func (r *Room) freezeHooks(ctx context.Context, f *set, in *pb.QuiesceFilesystemsRequest, hooks []hook) error {
	r.mu.Lock()
	f.after = in.RunPreFreezeScripts
	r.mu.Unlock()
	for _, h := range hooks {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		r.mu.Lock()
		f.ran = append(f.ran, h)
		held := f.held()
		r.mu.Unlock()
		if _, err := r.config.Frozen.Hold(held); err != nil {
			return err
		}
		if err := r.tell(ctx, f, h, phaseFreeze); err != nil {
			return fault.On(h.name, fault.Wrapf(fault.ErrOutput, "the hook failed, and nothing was frozen: %v", err))
		}
	}
	return nil
}

// thawHooks runs the hooks that ran for the freeze, the last one first, and then those for the thaw alone.
func (r *Room) thawHooks(f *set) {
	r.mu.Lock()
	ran, failed, after := slices.Clone(f.ran), f.failed, f.after
	r.mu.Unlock()
	r.tellThaw(f, ran, failed, after)
}

func (r *Room) tellThaw(f *set, ran []hook, failed, after bool) {
	if len(ran) == 0 && !after {
		return
	}
	ctx := context.Background()
	_ = r.config.Frozen.AwaitCommands(ctx) // another request may have frozen what programs need
	late, err := r.readHooks(r.config.ThawHooks, legacyThawHooks)
	if err != nil {
		r.report(f, &pb.HookOutcome{Name: r.config.ThawHooks, Phase: phaseThaw, Error: err.Error()})
	}
	for _, h := range slices.Backward(ran) {
		phase := phaseThaw
		if failed && r.knows(h, phaseFail) {
			phase = phaseFail
		}
		if i := slices.IndexFunc(late, func(other hook) bool { return other.base() == h.base() }); i >= 0 {
			h = late[i] // what undoes it is a file of its own
			late = slices.Delete(late, i, i+1)
		}
		_ = r.tell(ctx, f, h, phase)
	}
	if !after {
		return
	}
	for _, h := range late {
		_ = r.tell(ctx, f, h, phaseThaw)
	}
}

// thawLeftHooks runs, for the thaw, the hooks that a killed agent ran for a freeze.
func (r *Room) thawLeftHooks(h freeze.Hold) {
	f := &set{token: h.Token, caller: &builtins.Call{}}
	for _, name := range h.Hooks {
		each := hook{name: name}
		if !strings.HasPrefix(name, bundled) {
			file, err := filepath.EvalSymlinks(name)
			if err == nil {
				err = r.checkOwners(file)
			}
			if err != nil {
				r.report(f, &pb.HookOutcome{Name: name, Phase: phaseThaw, Error: err.Error()})
				continue
			}
			each.file = file
		}
		f.ran = append(f.ran, each)
	}
	r.tellThaw(f, f.ran, false, true)
}

// read returns the text of a hook.
func (r *Room) read(h hook) ([]byte, error) {
	var file fs.File
	var err error
	if h.file == "" {
		if r.config.Bundled == nil {
			return nil, fs.ErrNotExist
		}
		file, err = r.config.Bundled.Open(h.base())
	} else {
		file, err = os.Open(h.file)
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxHook))
}

// knows reports whether a hook has a word in its text.
func (r *Room) knows(h hook, word string) bool {
	source, err := r.read(h)
	return err == nil && bytes.Contains(source, []byte(word))
}

// tell runs a hook, and notes what became of it.
func (r *Room) tell(ctx context.Context, f *set, h hook, phase string) error {
	began := time.Now()
	output, err := r.run(ctx, f, h, phase)
	outcome := &pb.HookOutcome{Name: h.name, Phase: phase, DurationMs: uint64(time.Since(began).Milliseconds())}
	outcome.Output, _ = text.ToValidUTF8Max(string(output), hookOutput)
	if err != nil {
		outcome.Error = err.Error()
	}
	r.mu.Lock()
	f.told = append(f.told, outcome)
	r.mu.Unlock()
	if err != nil && phase != phaseFreeze { // else the reply says so
		r.report(f, outcome)
	}
	return err
}

// run runs a hook to its end. What it leaves running stays: a lock may be that of a connection that it holds.
func (r *Room) run(ctx context.Context, f *set, h hook, phase string) (output []byte, err error) {
	if filepath.Ext(h.name) == luaHook {
		if r.config.RunScript == nil {
			return nil, fault.Unsupported("there are no scripts")
		}
		source, err := r.read(h)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeoutCause(ctx, hookTime, fault.Wrapf(context.DeadlineExceeded, "it took longer than %v", hookTime))
		defer cancel()
		return nil, r.config.RunScript(ctx, f.caller, h.name, source, phase)
	}
	spec := proc.Spec{Argv: []string{h.file, phase}, Timeout: hookTime, MaxOutput: 4 * hookOutput}
	if h.file == "" {
		if spec.Stdin, err = r.read(h); err != nil {
			return nil, err
		}
		spec.Argv = []string{"/bin/sh", "-s", "--", phase}
	}
	if r.guest.Runner == nil {
		return nil, fault.Unsupported("no commands are run here")
	}
	result, err := r.guest.Runner.Run(ctx, spec)
	if result != nil {
		output = append(result.Stdout, result.Stderr...)
	}
	if err == nil {
		err = result.Err()
	}
	return output, err
}

// report logs a hook that failed when nobody waits for it.
func (r *Room) report(f *set, outcome *pb.HookOutcome) {
	words := fmt.Sprintf("the hook %s failed (%s): %s", outcome.Name, outcome.Phase, outcome.Error)
	if r.config.Thawed != nil {
		r.config.Thawed(words)
	}
	if f.caller.Event != nil {
		f.caller.Event(&pb.ErrorEvent{
			Severity: pb.ErrorSeverity_ERROR_SEVERITY_ERROR, Code: "hook_failed", Message: words,
			Details: map[string]string{"hook": outcome.Name, "phase": outcome.Phase, "quiesce_token": f.token},
		})
	}
}
