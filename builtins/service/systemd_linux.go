package service

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Names of systemd on D-Bus (org.freedesktop.systemd1(5)).
const (
	systemdName  = "org.freedesktop.systemd1"
	systemdPath  = "/org/freedesktop/systemd1"
	managerFace  = systemdName + ".Manager"
	unitFace     = systemdName + ".Unit"
	serviceFace  = systemdName + ".Service"
	propertyFace = "org.freedesktop.DBus.Properties"
)

// reloadTime bounds a daemon-reload: as long as systemd waits for its generators (DEFAULT_TIMEOUT_USEC).
const reloadTime = 90 * time.Second

// jobLook is how often a job is polled whose end was not signalled.
const jobLook = 5 * time.Second

// systemd is a connection to it.
type systemd struct {
	*sysbus.Conn
	room *Room
}

func (r *Room) openSystemd(ctx context.Context) (*systemd, error) {
	conn, err := sysbus.Open(ctx)
	if err != nil {
		return nil, err
	}
	return &systemd{Conn: conn, room: r}, nil
}

// privateSocket is where systemd takes connections of root (systemctl(1) uses it, too).
const privateSocket = "/run/systemd/private"

// openDirect connects to systemd without the bus between, where that is possible: for many calls.
func (r *Room) openDirect(ctx context.Context) (manager, error) {
	if conn, err := sysbus.OpenPeer(ctx, privateSocket); err == nil {
		return &systemd{Conn: conn, room: r}, nil
	}
	return r.openSystemd(ctx)
}

func (m *systemd) close() { _ = m.Close() }

func (m *systemd) manager(ctx context.Context, method string, out []any, args ...any) error {
	return unitError(m.Call(ctx, systemdName, systemdPath, managerFace+"."+method, out, args...))
}

// unitError gives errors of systemd's own the causes that they stand for.
func unitError(err error) error {
	var reply dbus.Error
	if !errors.As(err, &reply) {
		return err
	}
	text := reply.Error()
	switch strings.TrimPrefix(reply.Name, systemdName+".") {
	case "NoSuchUnit", "LoadFailed":
		return fault.Wrapf(fs.ErrNotExist, "%s", text)
	case "UnitMasked", "OnlyByDependency", "JobTypeNotApplicable", "NoIsolation", "ShuttingDown", "TransactionIsDestructive":
		return fault.Refuse("%s", text)
	}
	return err
}

// unit returns the state of a unit, which systemd loads for that.
func (m *systemd) unit(ctx context.Context, u unit) (*state, error) {
	if u.isTemplate() {
		return nil, fault.Invalid("it is a template, which needs a name behind the @")
	}
	s, err := m.look(ctx, u)
	if err == nil && s.load == "not-found" && s.active == "inactive" {
		err = fault.Wrapf(fs.ErrNotExist, "there is no such unit")
	}
	return s, err
}

// look is unit also of one that has no file.
func (m *systemd) look(ctx context.Context, u unit) (*state, error) {
	var at dbus.ObjectPath
	if err := m.manager(ctx, "LoadUnit", []any{&at}, string(u)); err != nil {
		return nil, err
	}
	p := properties{}
	if err := m.all(ctx, at, unitFace, p); err != nil {
		return nil, err
	}
	if u.kind() == suffix {
		if err := m.all(ctx, at, serviceFace, p); err != nil {
			return nil, err
		}
	}
	s := &state{
		unit: u, description: p.text("Description"), load: p.text("LoadState"), active: p.text("ActiveState"), sub: p.text("SubState"),
		file: p.text("UnitFileState"), kind: p.text("Type"), result: p.text("Result"),
	}
	if id := p.text("Id"); unit(id).kindKnown() { // an alias
		s.unit = unit(id)
	}
	s.pid, _ = p["MainPID"].Value().(uint32)
	s.memory = known(p["MemoryCurrent"])
	s.reload, _ = p["NeedDaemonReload"].Value().(bool)
	s.conditions, _ = p["ConditionResult"].Value().(bool)
	if by, ok := p["TriggeredBy"].Value().([]string); ok {
		s.triggered = len(by) > 0
	}
	if id, ok := p["InvocationID"].Value().([]byte); ok {
		s.invocation = hex.EncodeToString(id)
	}
	return s, nil
}

// lookAgain looks at a unit when the time of the call is over, and the connection with it.
func (m *systemd) lookAgain(ctx context.Context, u unit) (*state, error) {
	ctx = context.WithoutCancel(ctx)
	with, err := m.room.openSystemd(ctx)
	if err != nil {
		return nil, err
	}
	defer with.close()
	return with.look(ctx, u)
}

// properties are those of a unit, by name.
type properties map[string]dbus.Variant

func (p properties) text(name string) string { text, _ := p[name].Value().(string); return text }

func (m *systemd) all(ctx context.Context, path dbus.ObjectPath, face string, into properties) error {
	got := map[string]dbus.Variant{}
	if err := unitError(m.Call(ctx, systemdName, path, propertyFace+".GetAll", []any{&got}, face)); err != nil {
		return err
	}
	for name, value := range got {
		into[name] = value
	}
	return nil
}

// listed is a unit as ListUnits has it.
type listed struct {
	Name, Description, Load, Active, Sub, Following string
	Path                                            dbus.ObjectPath
	Job                                             uint32
	JobType                                         string
	JobPath                                         dbus.ObjectPath
}

// list asks for all services at once, and then for the pid and the memory of those that run.
func (m *systemd) list(ctx context.Context) ([]*state, error) {
	loaded := m.ask(ctx, systemdPath, managerFace, "UnitsLoadTimestampMonotonic") // since systemd 251
	var units []listed
	if err := m.manager(ctx, "ListUnitsByPatterns", []any{&units}, []string{}, []string{"*" + suffix}); err != nil {
		return nil, err
	}
	var list []*state
	var running []asked
	seen := map[unit]bool{}
	for _, l := range units {
		u := unit(l.Name)
		if seen[u] = true; l.Load == "not-found" && l.Active == "inactive" || !u.kindKnown() {
			continue
		}
		s := &state{unit: u, description: l.Description, load: l.Load, active: l.Active, sub: l.Sub}
		if list = append(list, s); l.Active != "inactive" && l.Active != "failed" && l.Sub != "exited" {
			running = append(running, asked{l.Path, s})
		}
	}
	var when uint64
	var value dbus.Variant
	if loaded(&value) == nil {
		when, _ = value.Value().(uint64)
	}
	var enabled *index
	m.usage(ctx, running, func() { enabled = m.room.enabled(when) })
	for _, s := range list {
		s.file = enabled.of(s.unit)
	}
	for u, file := range enabled.states {
		if seen[u] || u.isTemplate() || file == "alias" {
			continue
		}
		s := &state{unit: u, load: "loaded", active: "inactive", sub: "dead", file: file}
		if strings.HasPrefix(file, "masked") {
			s.load = "masked"
		}
		list = append(list, s)
	}
	return list, context.Cause(ctx)
}

// ask asks for a property, and returns what waits for the answer.
func (m *systemd) ask(ctx context.Context, at dbus.ObjectPath, face, name string) func(out ...any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, sysbus.Timeout, fault.Wrapf(context.DeadlineExceeded, "systemd does not answer"))
	call := m.Object(systemdName, at).GoWithContext(ctx, propertyFace+".Get", 0, make(chan *dbus.Call, 1), face, name)
	return func(out ...any) error {
		defer cancel()
		return (<-call.Done).Store(out...)
	}
}

// asked is a service whose use is asked for.
type asked struct {
	path dbus.ObjectPath
	*state
}

// inFlight bounds the calls that wait for an answer: the system bus takes 128 of a connection (dbus-daemon(1)).
const inFlight = 64

// usage asks for the pids of services, with all calls sent before the first reply is read, and reads what memory
// their control groups use: that systemd would read from there, too, each with a call of its own. meanwhile is called when the
// first ones are on their way.
func (m *systemd) usage(ctx context.Context, list []asked, meanwhile func()) {
	for part := range slices.Chunk(list, inFlight) {
		var answers []func(...any) error
		for _, of := range part {
			answers = append(answers, m.ask(ctx, of.path, serviceFace, "MainPID"))
		}
		if meanwhile != nil {
			meanwhile()
			meanwhile = nil
		}
		for i, of := range part {
			var value dbus.Variant
			if answers[i](&value) == nil { // one that ended meanwhile has none
				of.pid, _ = value.Value().(uint32)
				of.memory = memoryOf(of.pid, of.unit)
			}
		}
	}
	if meanwhile != nil {
		meanwhile()
	}
}

// memoryOf is what memory the control group of a unit uses, which its main process is in; 0: not known.
func memoryOf(pid uint32, u unit) uint64 {
	if pid == 0 {
		return 0
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(groups)) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for group != "/" && group != "." && unit(path.Base(group)) != u { // a service may have groups of its own below
			group = path.Dir(group)
		}
		text, err := os.ReadFile(cgroupRoot + group + "/memory.current")
		if n, wrong := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil && wrong == nil {
			return n
		}
	}
	return 0
}

// cgroupRoot is where control groups of version 2 are (systemd's "unified hierarchy").
const cgroupRoot = "/sys/fs/cgroup"

// known is a number of systemd's; 0 where that says with the largest one that it does not know.
func known(value dbus.Variant) uint64 {
	n, _ := value.Value().(uint64)
	if n == ^uint64(0) {
		return 0
	}
	return n
}

// methods are how actions are asked for.
var methods = map[string]string{
	"start": "StartUnit", "stop": "StopUnit", "restart": "RestartUnit", "reload": "ReloadUnit",
	"reload-or-restart": "ReloadOrRestartUnit",
}

func (m *systemd) do(ctx context.Context, action string, u unit) error {
	result, err := m.job(ctx, methods[action], u)
	if err != nil {
		return err
	}
	s, err := m.look(ctx, u)
	switch {
	case err != nil:
		return err
	case result != "done" && result != "skipped":
		return m.failed(ctx, s, fmt.Sprintf("the job ended with %q", result))
	case action == "stop" && s.active != "inactive" && s.active != "failed":
		return m.failed(ctx, s, "it was stopped, and is "+s.active)
	case action != "stop" && s.active == "failed":
		return m.failed(ctx, s, "it failed")
	case action != "stop" && s.active == "inactive" && !s.conditions:
		return m.failed(ctx, s, "its conditions are not met, so it did not start")
	}
	return nil
}

// failed is the error of a unit, with how it ended and the last lines of its log.
func (m *systemd) failed(ctx context.Context, s *state, words string) error {
	if s.result != "" && s.result != "success" {
		words += ": " + s.result
	}
	if lines := m.log(ctx, s); lines != "" {
		words += "\n" + lines
	}
	return fault.Wrapf(errFailed, "%s", words)
}

const (
	logLines = "12"
	logTime  = 5 * time.Second
	logPause = 200 * time.Millisecond // for the journal to get what was just written
	maxLog   = 4 << 10                // bytes of lines in an error
)

// log is what a unit wrote last, and systemd about it.
func (m *systemd) log(ctx context.Context, s *state) string {
	if s.invocation == "" || m.room.guest.Runner == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), logTime)
	defer cancel()
	time.Sleep(logPause)
	argv := []string{
		"journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=" + logLines,
		"_SYSTEMD_UNIT=" + string(s.unit), "+", "UNIT=" + string(s.unit), // of a short run the journal has no invocation
	}
	spec := proc.Spec{Argv: argv, Tied: true, MaxOutput: 64 << 10}
	result, err := m.room.guest.Run(ctx, guest.Command{Line: guest.Quote(argv), Readonly: true}, spec)
	if err != nil || result.Code != 0 {
		return ""
	}
	text := strings.TrimSpace(string(result.Stdout))
	return text[max(0, len(text)-maxLog):]
}

// job has a job made and waits for its end, which it returns in systemd's word.
func (m *systemd) job(ctx context.Context, method string, u unit) (result string, err error) {
	signals := make(chan *dbus.Signal, 256)
	m.Signal(signals)
	defer m.RemoveSignal(signals)
	match := []dbus.MatchOption{dbus.WithMatchInterface(managerFace), dbus.WithMatchMember("JobRemoved")}
	if err := m.AddMatchSignalContext(ctx, match...); err != nil {
		return "", sysbus.Error(systemdName, err)
	}
	if err := m.manager(ctx, "Subscribe", nil); err != nil {
		return "", err
	}
	var job dbus.ObjectPath
	if err := m.manager(ctx, method, []any{&job}, string(u), "replace"); err != nil {
		return "", err
	}
	look := time.NewTicker(jobLook)
	defer look.Stop()
	for {
		select {
		case signal, open := <-signals:
			switch {
			case !open:
				return "", fault.Wrapf(fs.ErrClosed, "the connection to systemd ended before the job did")
			case signal.Name == managerFace+".JobRemoved" && len(signal.Body) == 4 && signal.Body[1] == job:
				result, _ = signal.Body[3].(string)
				return result, nil
			}
		case <-look.C: // the end of a job is signalled once
			var state string
			err := m.Property(ctx, systemdName, job, systemdName+".Job", "State", &state)
			if errors.Is(err, fs.ErrNotExist) {
				return "done", nil // its outcome is the state of the unit
			}
			if err != nil {
				return "", err
			}
		case <-ctx.Done():
			words := "its job has not ended"
			if s, err := m.lookAgain(ctx, u); err == nil {
				words = "it is still " + s.active
				if s.sub != "" {
					words += " (" + s.sub + ")"
				}
			}
			return "", fault.Wrapf(context.Cause(ctx), "%v: %s", context.Cause(ctx), words)
		}
	}
}

func (m *systemd) reload(ctx context.Context) error {
	late := fault.Wrapf(context.DeadlineExceeded, "systemd did not read its files again within %v", reloadTime)
	ctx, cancel := context.WithTimeoutCause(ctx, reloadTime, late)
	defer cancel()
	m.room.unread.Store(false) // before: what is linked meanwhile may not be read
	call := m.Object(systemdName, systemdPath).CallWithContext(ctx, managerFace+".Reload", 0)
	if call.Err == nil {
		return nil
	}
	m.room.unread.Store(true)
	if context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	return unitError(sysbus.Error(systemdName, call.Err))
}

// startAs has nothing to do: files say how a unit starts.
func (m *systemd) startAs(context.Context, unit, *pb.ServiceStart) error { return nil }

func (m *systemd) forget(ctx context.Context, u unit) error {
	return m.manager(ctx, "ResetFailedUnit", nil, string(u))
}

func (m *systemd) own(ctx context.Context) unit {
	var path dbus.ObjectPath
	var id string
	if m.manager(ctx, "GetUnitByPID", []any{&path}, uint32(os.Getpid())) != nil {
		return ""
	}
	if m.Property(ctx, systemdName, path, unitFace, "Id", &id) != nil {
		return ""
	}
	return unit(id)
}
