package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// serviceArg makes this program the service that is started and stopped; after it is how it behaves.
const serviceArg = "be-a-service"

// startArg makes this program one that starts the service after it.
const startArg = "start-a-service"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == startArg {
		if err := startService(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(4)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == serviceArg {
		if os.Args[2] == "late" {
			time.Sleep(5 * time.Second) // under Wine a start is refused after 3
		}
		if err := svc.Run("", behaviour(os.Args[2])); err != nil {
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func startService(name string) error {
	m, err := mgr.Connect()
	if err != nil {
		return err
	}
	defer m.Disconnect()
	s, err := m.OpenService(name)
	if err != nil {
		return err
	}
	defer s.Close()
	return s.Start()
}

// behaviour is that of a service: good, late to connect to the manager, slow to start and stop, broken, or one that ends a
// moment after its start.
type behaviour string

func (b behaviour) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (specific bool,
	code uint32) {
	status <- svc.Status{State: svc.StartPending, WaitHint: 5000}
	switch b {
	case "broken":
		return true, 42
	case "slow":
		time.Sleep(time.Second)
	}
	running := svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptParamChange}
	if b == "unchanging" {
		running.Accepts = svc.AcceptStop
	}
	status <- running
	if b == "short" {
		time.Sleep(300 * time.Millisecond)
		return false, uint32(windows.ERROR_FILE_NOT_FOUND)
	}
	for request := range requests {
		switch request.Cmd {
		case svc.Interrogate, svc.ParamChange:
			status <- running
		case svc.Stop:
			status <- svc.Status{State: svc.StopPending, WaitHint: 5000}
			if b == "slow" {
				time.Sleep(time.Second)
			}
			return false, 0
		}
	}
	return false, 0
}

// install makes a service of this program, which the end of the test removes.
func install(t *testing.T, how behaviour, config mgr.Config) string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m, err := mgr.Connect()
	if err != nil {
		t.Skip("needs an administrator: ", err)
	}
	defer m.Disconnect()
	name := fmt.Sprintf("Quantix-Test.%s %d", how, time.Now().UnixNano())
	s, err := m.CreateService(name, program, config, serviceArg, string(how))
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	t.Cleanup(func() {
		m, err := mgr.Connect()
		if err != nil {
			t.Error(err)
			return
		}
		defer m.Disconnect()
		s, err := m.OpenService(name)
		if err != nil {
			t.Error(err)
			return
		}
		defer s.Close()
		s.Control(svc.Stop)
		if err := s.Delete(); err != nil {
			t.Error(err)
		}
	})
	return name
}

func call(t *testing.T, c *builtins.Call, name string, in proto.Message) (proto.Message, error) {
	t.Helper()
	for _, op := range New(&guest.Guest{Live: true}).Room().Ops {
		if op.Name == name {
			return op.Call(t.Context(), c, in)
		}
	}
	t.Fatal("there is no", name)
	return nil, nil
}

func change(t *testing.T, c *builtins.Call, name, service string, want bool) {
	t.Helper()
	var in proto.Message = &pb.ServiceRunArgs{Name: service}
	if strings.HasSuffix(name, "able") {
		in = &pb.ServiceEnableArgs{Name: service}
	}
	out, err := call(t, c, name, in)
	if err != nil || out.(*pb.Changed).Changed != want {
		t.Fatalf("%s: %v, want %v: %v", name, out, want, err)
	}
}

func status(t *testing.T, c *builtins.Call, service string) *pb.Service {
	t.Helper()
	out, err := call(t, c, "service.status", &pb.ServiceArgs{Name: service})
	if err != nil {
		t.Fatal(err)
	}
	return out.(*pb.Service)
}

// Each action is done once, waits for its end, and says truthfully whether it changed anything.
func TestActions(t *testing.T) {
	for _, how := range []behaviour{"good", "slow"} {
		name := install(t, how, mgr.Config{DisplayName: "Quantix test " + string(how), Description: "A service of a test."})
		c := &builtins.Call{}
		if s := status(t, c, strings.ToUpper(name)); s.Active != "inactive" || s.Running || s.Enabled != "manual" || s.Pid != 0 ||
			s.Name != name {
			t.Errorf("before: %v", s)
		}
		change(t, c, "service.start", name, true)
		s := status(t, c, name)
		if !s.Running || s.Sub != "running" || s.Pid == 0 || s.Description != "A service of a test." {
			t.Errorf("started: %v", s)
		}
		change(t, c, "service.start", name, false)
		change(t, c, "service.reload", name, true)
		if again := status(t, c, name); again.Pid != s.Pid {
			t.Error("reload started it again")
		}
		change(t, c, "service.restart", name, true)
		if again := status(t, c, name); again.Pid == s.Pid || !again.Running {
			t.Errorf("restarted: %v, was %v", again, s)
		}
		change(t, c, "service.stop", name, true)
		change(t, c, "service.stop", name, false)
		if s := status(t, c, name); s.Running || s.Active != "inactive" || s.Pid != 0 {
			t.Errorf("stopped: %v", s)
		}
	}
}

// While one service starts, the database of services is locked: another start waits for it.
func TestStartWhileAnotherServiceStarts(t *testing.T) {
	late, good := install(t, "late", mgr.Config{}), install(t, "good", mgr.Config{})
	other := exec.Command(os.Args[0], startArg, late)
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	c := &builtins.Call{}
	for end := time.Now().Add(time.Minute); status(t, c, late).Active == "inactive"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Error("the other service does not start")
			break
		}
	}
	change(t, c, "service.start", good, true)
	if err := other.Wait(); err != nil {
		t.Error("the other start:", err)
	}
	change(t, c, "service.start", late, false)
}

func TestStartTypes(t *testing.T) {
	name := install(t, "good", mgr.Config{})
	c := &builtins.Call{}
	for _, step := range []struct {
		op      string
		changed bool
		enabled string
	}{
		{"service.enable", true, "enabled"}, {"service.enable", false, "enabled"},
		{"service.disable", true, "disabled"}, {"service.disable", false, "disabled"},
	} {
		change(t, c, step.op, name, step.changed)
		if s := status(t, c, name); s.Enabled != step.enabled {
			t.Errorf("%s: %v", step.op, s)
		}
	}
	if _, err := call(t, c, "service.start", &pb.ServiceRunArgs{Name: name}); !errors.Is(err, fault.ErrRefused) {
		t.Error("a disabled service is started:", err)
	}
	if _, err := call(t, c, "service.mask", &pb.ServiceEnableArgs{Name: name}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// A service that does not stay is an error with what it ended with.
func TestFailures(t *testing.T) {
	c := &builtins.Call{}
	if _, err := call(t, c, "service.start", &pb.ServiceRunArgs{Name: install(t, "broken", mgr.Config{})}); !errors.Is(err,
		errFailed) ||
		!strings.Contains(err.Error(), "42") {
		t.Error(err)
	}
	if _, err := call(t, c, "service.reload", &pb.ServiceRunArgs{Name: install(t, "unchanging",
		mgr.Config{})}); !errors.Is(err, fault.ErrRefused) {
		t.Error("what does not run is reloaded:", err)
	}
	for _, name := range []string{"quantix no such service", "a/b", "", strings.Repeat("x", 300)} {
		if _, err := call(t, c, "service.start", &pb.ServiceRunArgs{Name: name}); !errors.Is(err, fs.ErrNotExist) &&
			!errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%.20q: %v", name, err)
		}
	}
	r := New(&guest.Guest{Live: true})
	name := install(t, "short", mgr.Config{})
	if _, err := r.notified(t.Context(), c, &pb.ServiceNotifyArgs{Unit: name}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.settled(t.Context(), c, &pb.ServiceNotifyArgs{Unit: name}); !errors.Is(err, errFailed) {
		t.Error("a service that ended by itself is settled:", err)
	}
}

// Others that depend on a service are named, and not stopped with it.
func TestDependentServicesAreNamed(t *testing.T) {
	name := install(t, "good", mgr.Config{})
	other := install(t, "good", mgr.Config{Dependencies: []string{name}})
	c := &builtins.Call{}
	change(t, c, "service.start", name, true) // which Wine does not do by itself
	change(t, c, "service.start", other, true)
	_, err := call(t, c, "service.stop", &pb.ServiceRunArgs{Name: name})
	if err == nil && !status(t, c, name).Running {
		change(t, c, "service.stop", other, true)
		t.Skip("Wine stops services that others depend on")
	}
	if !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), other) {
		t.Error(err)
	}
	change(t, c, "service.stop", other, true)
}

// A filter leaves out nothing that matches.
func TestListsAreFiltered(t *testing.T) {
	name := install(t, "good", mgr.Config{})
	c := &builtins.Call{}
	names := func(filter string, running bool) (list []string) {
		t.Helper()
		out, err := call(t, c, "list_services", &pb.ListServicesRequest{Filter: filter, RunningOnly: running})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range out.(*pb.ListServicesResponse).Services {
			list = append(list, s.Name)
		}
		return list
	}
	if all := names("", false); !slices.Contains(all, name) || len(all) < 2 || !slices.IsSorted(all) {
		t.Error(all)
	}
	if list := names(strings.ToLower(name), false); !slices.Equal(list, []string{name}) {
		t.Error(list)
	}
	if list := names(name, true); len(list) != 0 {
		t.Error(list)
	}
	change(t, c, "service.start", name, true)
	if list := names(name, true); !slices.Equal(list, []string{name}) {
		t.Error(list)
	}
}

// A host sees the state after its action.
func TestServiceControl(t *testing.T) {
	name := install(t, "good", mgr.Config{})
	c := &builtins.Call{}
	for _, step := range []struct {
		action         pb.ServiceAction
		changed        bool
		state, enabled string
	}{
		{pb.ServiceAction_SERVICE_ACTION_START, true, "running", "manual"}, {pb.ServiceAction_SERVICE_ACTION_START, false,
			"running", "manual"},
		{pb.ServiceAction_SERVICE_ACTION_ENABLE, true, "running", "auto"}, {pb.ServiceAction_SERVICE_ACTION_RESTART, true,
			"running", "auto"},
		{pb.ServiceAction_SERVICE_ACTION_STOP, true, "inactive", "auto"}, {pb.ServiceAction_SERVICE_ACTION_DISABLE, true,
			"inactive", "disabled"},
		{pb.ServiceAction_SERVICE_ACTION_STATUS, false, "inactive", "disabled"},
	} {
		out, err := call(t, c, "service_control", &pb.ServiceControlRequest{Name: name, Action: step.action})
		if err != nil {
			t.Fatal(step.action, err)
		}
		got := out.(*pb.ServiceControlResponse)
		if got.NewState != step.state || got.Changed != step.changed || got.Service.StartType != step.enabled {
			t.Errorf("%v: %v", step.action, got)
		}
	}
	if _, err := call(t, c, "service_control", &pb.ServiceControlRequest{Name: name,
		Action: pb.ServiceAction_SERVICE_ACTION_MASK}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// undos is a transaction that keeps what is announced to it.
type undos struct {
	builtins.Tx
	list []*pb.ServiceRestore
}

func (u *undos) UndoLast(_ context.Context, op string, args proto.Message) error {
	if op != restoreOp {
		return errors.New(op)
	}
	u.list = append(u.list, proto.Clone(args).(*pb.ServiceRestore))
	return nil
}

func (u *undos) NotBegun() { u.list = u.list[:len(u.list)-1] }

// What was announced brings the service back as it was, also where the change never came, and also twice.
func TestUndo(t *testing.T) {
	for _, begun := range []bool{false, true} {
		for _, ops := range [][]string{{"start"}, {"enable", "start"}, {"disable"}, {"start", "stop"}} {
			name := install(t, "good", mgr.Config{StartType: mgr.StartManual})
			c := &builtins.Call{}
			if begun {
				change(t, c, "service.start", name, true)
			}
			before := status(t, c, name)
			tx := &undos{}
			for _, op := range ops {
				var in proto.Message = &pb.ServiceRunArgs{Name: name}
				if strings.HasSuffix(op, "able") {
					in = &pb.ServiceEnableArgs{Name: name}
				}
				if _, err := call(t, &builtins.Call{Tx: tx}, "service."+op, in); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				for _, undo := range slices.Backward(tx.list) {
					if _, err := call(t, &builtins.Call{Undo: true}, restoreOp, undo); err != nil {
						t.Fatal(err)
					}
				}
			}
			if after := status(t, c, name); after.Active != before.Active || after.Enabled != before.Enabled {
				t.Errorf("%v of %v: %v, was %v", ops, begun, after, before)
			}
		}
	}
}

// A dry run tells the same as the run, and changes nothing.
func TestDryRun(t *testing.T) {
	name := install(t, "good", mgr.Config{})
	before := status(t, &builtins.Call{}, name)
	c := &builtins.Call{DryRun: &builtins.DryRun{}}
	change(t, c, "service.enable", name, true)
	change(t, c, "service.enable", name, false)
	change(t, c, "service.start", name, true)
	change(t, c, "service.start", name, false)
	if s := status(t, c, name); !s.Running || s.Enabled != "enabled" {
		t.Errorf("pretended: %v", s)
	}
	change(t, c, "service.stop", name, true)
	change(t, c, "service.disable", name, true)
	if _, err := call(t, c, "service.start", &pb.ServiceRunArgs{Name: name}); !errors.Is(err, fault.ErrRefused) {
		t.Error("a dry run starts a disabled service:", err)
	}
	if s := status(t, &builtins.Call{}, name); !proto.Equal(s, before) {
		t.Errorf("%v, was %v", s, before)
	}
}
