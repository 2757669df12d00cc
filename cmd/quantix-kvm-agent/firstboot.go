package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/cmd/internal/core"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/runtime/firstboot"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// firstBootDir is where the scripts of an image lie that run once in each guest: NN-NAME.lua, with its parameters in
// NN-NAME.json.
const firstBootDir = "/etc/quantix-kvm/firstboot.d"

const maxFirstBootFile = 1 << 20 // bytes

var firstBootFile = lazyregexp.New(`^([A-Za-z0-9][A-Za-z0-9_-]{0,100})\.(lua|json)$`)

// firstBootFile keeps which first-boot scripts ran.
func (f flags) firstBootFile() string { return filepath.Join(f.stateDir(), "first-boot.json") }

// machineChanged notes that a script under a key has changed the machine ID.
func (f flags) machineChanged(key, from, to string) error {
	return firstboot.InstanceChanged(f.firstBootFile(), key, from, to)
}

// newFirstBoot returns what runs the first-boot scripts.
func newFirstBoot(f flags, conf config.Config, agentCore *core.Core, changed func()) *firstboot.Runner {
	return firstboot.New(firstboot.Config{
		File: f.firstBootFile(),
		Scripts: func(ctx context.Context) ([]firstboot.Script, error) {
			return firstBootScripts(ctx, f, conf, agentCore)
		},
		Instance: func(ctx context.Context) (string, error) { return firstBootInstance(ctx, agentCore.Journal) },
		Boot:     agentCore.Rooms.BootID(), Changed: changed,
		Run: func(ctx context.Context, request *pb.RunScriptRequest) (*pb.RunScriptResponse, error) {
			return execute[*pb.RunScriptResponse](ctx, agentCore, request)
		},
	})
}

// firstBootInstance returns the machine ID once nothing is left unfinished that may have changed it.
func firstBootInstance(ctx context.Context, j *journal.Journal) (string, error) {
	for {
		err := j.Refusal()
		if err == nil {
			return j.MachineID(), nil
		}
		if !errors.Is(err, fault.ErrBusy) {
			return "", err
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}

// firstBootScripts returns the scripts of the image and those that the host gives, which stand for those of the same name.
func firstBootScripts(ctx context.Context, f flags, conf config.Config, agentCore *core.Core) ([]firstboot.Script, error) {
	if f.root == rootDir { // before anything is read: user data of cloud-init may bring scripts
		if err := awaitCloudInit(ctx); err != nil {
			return nil, err
		}
	}
	files := map[string]firstBootText{}
	if err := readFirstBootDir(f.root, firstBootDir, files); err != nil {
		return nil, err
	}
	params := map[string]map[string]any{}
	if f.root == rootDir {
		if err := hostFirstBoot(agentCore.Rooms.OEMStrings(), files, params); err != nil {
			return nil, err
		}
	}
	var list []firstboot.Script
	for _, file := range slices.Sorted(maps.Keys(files)) {
		name, is := strings.CutSuffix(file, ".lua")
		if !is {
			continue
		}
		s := firstboot.Script{Name: name, Path: files[file].path, Source: files[file].text}
		if about, there := files[name+".json"]; there {
			if err := json.Unmarshal(about.text, &s.Params); err != nil {
				return nil, fmt.Errorf("%s: %w", about.path, err)
			}
		}
		for key, value := range params[name] {
			if s.Params == nil {
				s.Params = map[string]any{}
			}
			s.Params[key] = value
		}
		if len(s.Source) > conf.Script.Source {
			return nil, fmt.Errorf("%s: larger than %d bytes", s.Path, conf.Script.Source)
		}
		list = append(list, s)
	}
	return list, nil
}

// firstBootText is a file with where it lies, for people.
type firstBootText struct {
	path string
	text []byte
}

// readFirstBootDir reads a directory of scripts and parameters below a root. What another user could have written is refused. A
// directory that is missing is empty.
func readFirstBootDir(root, dir string, to map[string]firstBootText) error {
	files, err := fsys.Open(root)
	if err != nil {
		return err
	}
	defer files.Close()
	resolved, err := files.Resolve(dir, true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	place := filepath.Join(root, text.UnescapePath(resolved))
	info, err := os.Lstat(place)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && !info.IsDir() {
		err = errors.New("not a directory")
	}
	if err == nil {
		err = trusted(info)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	entries, err := os.ReadDir(place)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !firstBootFile().MatchString(entry.Name()) {
			continue
		}
		path := filepath.Join(place, entry.Name())
		info, err := entry.Info()
		if err == nil && !info.Mode().IsRegular() {
			err = errors.New("not a regular file")
		}
		if err == nil {
			err = trusted(info)
		}
		if err == nil && info.Size() > maxFirstBootFile {
			err = fmt.Errorf("larger than %d bytes", maxFirstBootFile)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		to[entry.Name()] = firstBootText{path, content}
	}
	return nil
}

func trusted(info fs.FileInfo) error {
	if why := core.WhyUntrusted(info); why != "" {
		return errors.New(why)
	}
	return nil
}

// cloudInitTime bounds how long cloud-init is waited for.
const cloudInitTime = 10 * time.Minute

// awaitCloudInit waits until cloud-init has done its work, where there is one: both would change the same files.
func awaitCloudInit(ctx context.Context) error {
	if _, err := os.Stat("/run/cloud-init/enabled"); err != nil {
		return nil
	}
	for deadline := time.Now().Add(cloudInitTime); time.Now().Before(deadline); {
		if _, err := os.Stat("/run/cloud-init/result.json"); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
	return nil // it hangs, and first-boot scripts may be what mends that
}

// runFirstBoot runs the first-boot scripts when the first pass of the recovery is done.
func runFirstBoot(ctx context.Context, first *firstboot.Runner, recovery *recovery, log *zap.Logger) {
	select {
	case <-ctx.Done():
		return
	case <-recovery.done:
	}
	err := first.Run(ctx)
	if err == nil || ctx.Err() != nil {
		return
	}
	log.Error("first boot failed", zap.Error(err))
}

// firstBootNotices returns the event for hosts that a first-boot script failed.
func firstBootNotices(first *firstboot.Runner) []*pb.ErrorEvent {
	now := first.State()
	if now.State != pb.FirstBootState_FIRST_BOOT_STATE_FAILED {
		return nil
	}
	return []*pb.ErrorEvent{{
		Severity: pb.ErrorSeverity_ERROR_SEVERITY_ERROR, Code: "first_boot", Message: "first boot: " + now.Script + ": " + now.Error,
		Details: map[string]string{"script": now.Script},
	}}
}
