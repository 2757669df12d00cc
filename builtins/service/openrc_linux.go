package service

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Where OpenRC has what (its librc: RC_SVCDIR, RC_INITDIR, RC_RUNLEVELDIR).
const (
	openrcState  = "/run/openrc"
	openrcInit   = "/etc/init.d"
	openrcLevels = "/etc/runlevels"
	openrcLevel  = "default" // the runlevel that enable adds to
)

// openrc starts and stops services by the tools of OpenRC.
type openrc struct{ room *Room }

func (m *openrc) close() {}

// script is the name of a service's script.
func script(u unit) (string, error) {
	if u.kind() != suffix {
		return "", fault.Invalid("OpenRC has services alone, and no %s", strings.TrimPrefix(u.kind(), "."))
	}
	return u.short(), nil
}

func (m *openrc) run(ctx context.Context, argv ...string) (*proc.Result, error) {
	return m.room.guest.Run(ctx, guest.Command{Line: guest.Quote(argv)}, proc.Spec{Argv: argv, MaxOutput: 1 << 20})
}

func (m *openrc) unit(ctx context.Context, u unit) (*state, error) {
	name, err := script(u)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(openrcInit + "/" + name); errors.Is(err, fs.ErrNotExist) || err == nil && info.IsDir() {
		return nil, fault.Wrapf(fs.ErrNotExist, "there is no such service")
	}
	return m.state(name), nil
}

// state reads what OpenRC notes of each service: a name in the directory of its state.
func (m *openrc) state(name string) *state {
	s := &state{unit: unit(name + suffix), load: "loaded", active: "inactive", sub: "stopped", file: "disabled", conditions: true}
	for _, of := range []struct{ dir, active, sub string }{
		{"started", "active", "running"}, {"starting", "activating", "starting"}, {"stopping", "deactivating", "stopping"},
		{"inactive", "activating", "inactive"}, {"failed", "failed", "failed"},
	} {
		if _, err := os.Lstat(openrcState + "/" + of.dir + "/" + name); err == nil {
			s.active, s.sub = of.active, of.sub
		}
	}
	levels, _ := os.ReadDir(openrcLevels)
	for _, level := range levels {
		if _, err := os.Lstat(openrcLevels + "/" + level.Name() + "/" + name); err == nil {
			s.file = "enabled"
		}
	}
	return s
}

func (m *openrc) list(context.Context) ([]*state, error) {
	scripts, err := os.ReadDir(openrcInit)
	if err != nil {
		return nil, fault.On(openrcInit, err)
	}
	var list []*state
	for _, s := range scripts {
		info, err := os.Stat(openrcInit + "/" + s.Name())
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 && !strings.HasSuffix(s.Name(), ".sh") {
			list = append(list, m.state(s.Name()))
		}
	}
	return list, nil
}

func (m *openrc) do(ctx context.Context, action string, u unit) error {
	name, err := script(u)
	if err != nil {
		return err
	}
	if action == "reload-or-restart" {
		if err := m.do(ctx, "reload", u); err == nil {
			return nil
		}
		action = "restart"
	}
	result, err := m.run(ctx, "rc-service", "--", name, action)
	if err != nil {
		return err
	}
	s := m.state(name)
	if wrong := action == "stop" && s.active != "inactive" || action != "stop" && !s.runs(); result.Code != 0 || wrong {
		said := strings.TrimSpace(string(result.Stdout) + string(result.Stderr))
		said = said[max(0, len(said)-maxLog):]
		return fault.Wrapf(errFailed, "rc-service ended with code %d, and it is %s\n%s", result.Code, s.active, said)
	}
	return nil
}

func (m *openrc) reload(context.Context) error { return nil } // it reads its files each time

// startAs has nothing to do: links say what starts.
func (m *openrc) startAs(context.Context, unit, *pb.ServiceStart) error { return nil }

func (m *openrc) failed(_ context.Context, _ *state, words string) error {
	return fault.Wrapf(errFailed, "%s", words)
}

func (m *openrc) forget(ctx context.Context, u unit) error {
	name, err := script(u)
	if err == nil {
		_, err = m.run(ctx, "rc-service", "--", name, "zap")
	}
	return err
}

// own is not known: the agent's own service cannot be found out.
func (m *openrc) own(context.Context) unit {
	if _, err := os.Lstat(openrcState + "/started/quantix-kvm-agent"); err == nil {
		return "quantix-kvm-agent.service"
	}
	return ""
}
