package service

import (
	"context"
	"os"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// moreActions are the actions that the contract does not have.
const moreActions = "reload,mask,unmask"

// platform is what the room needs on Linux. The room's lock guards index.
type platform struct {
	edit  *edit.Editor
	index *index // of the running machine, as it was looked at last; nil: it was not
}

func newPlatform(g *guest.Guest) platform { return platform{edit: &edit.Editor{Guest: g}} }

// linkDirs is below which directory links say what starts with the guest.
func (r *Room) linkDirs() []string {
	if _, by := r.manages(r.guest.Files); by == byOpenRC {
		return []string{openrcLevels}
	}
	return []string{systemDir}
}

// enabled is how the services of the running machine are enabled. loaded is when systemd had read its files the last time.
func (r *Room) enabled(loaded uint64) *index {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.index.current(r.guest.Dir, loaded) {
		r.index = newIndex(r.guest.Dir, loaded)
	}
	return r.index
}

// live is what manages those of the running machine; none: nothing does, or the guest is a tree that is not booted.
func (r *Room) live() system {
	switch {
	case !r.guest.Live:
		return none
	case isDir("/run/systemd/system"): // sd_booted(3)
		return bySystemd
	case isDir(openrcState):
		return byOpenRC
	}
	return none
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// open connects to what manages the services of the running machine. The caller closes it.
func (r *Room) open(ctx context.Context) (manager, error) {
	switch r.live() {
	case bySystemd:
		return r.openSystemd(ctx)
	case byOpenRC:
		return &openrc{r}, nil
	}
	if !r.guest.Live {
		return nil, &fault.Error{
			Err:  fault.Unsupported("no services run in a tree that is not booted"),
			Hint: "tx.notify does nothing there, and acts where the guest runs",
		}
	}
	return nil, errNone
}

// openList connects to it for many questions.
func (r *Room) openList(ctx context.Context) (manager, error) {
	if r.live() == bySystemd {
		return r.openDirect(ctx)
	}
	return r.open(ctx)
}

// mayEndOwn returns why the agent's own unit cannot be stopped or restarted: the manager does it, whatever becomes of the
// agent.
func mayEndOwn(string) error { return nil }

// mayStart returns why a unit that is not masked cannot be started: each can.
func mayStart(*state) error { return nil }

// mayHaveCome reports whether a unit that the manager does not know has a file by now.
func (r *Room) mayHaveCome(call *builtins.Call, u unit) bool {
	if r.live() != bySystemd {
		return false
	}
	_, err := tree{r.guest.Of(call)}.find(u)
	return err == nil
}

// pretendFiles puts into a state what the files of a dry run say of the unit.
func (r *Room) pretendFiles(call *builtins.Call, with *state) {
	if r.live() != bySystemd || !call.DryRun.Changed {
		return
	}
	file, err := tree{r.guest.Of(call)}.state(with.unit)
	if err != nil || ofThisBoot(with.file) {
		return
	}
	switch masked := strings.HasPrefix(file, "masked"); {
	case masked:
		with.load = "masked"
	case with.load == "masked":
		with.load = "loaded"
	}
	with.file = file
}

// ofThisBoot says of a state that it ends with this boot, so that it is in no file of the tree.
func ofThisBoot(file string) bool {
	return file == "generated" || file == "transient" || strings.HasSuffix(file, "-runtime")
}
