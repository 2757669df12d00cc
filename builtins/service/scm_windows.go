package service

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// How a service starts (winsvc.h).
const (
	serviceBoot     = windows.SERVICE_BOOT_START
	serviceSystem   = windows.SERVICE_SYSTEM_START
	serviceAuto     = windows.SERVICE_AUTO_START
	serviceManual   = windows.SERVICE_DEMAND_START
	serviceDisabled = windows.SERVICE_DISABLED
)

// startWord is a start type in the words that state.file has.
func startWord(s *pb.ServiceStart) string {
	switch s.GetType() {
	case serviceBoot:
		return "boot"
	case serviceSystem:
		return "system"
	case serviceAuto:
		if s.Delayed {
			return "delayed"
		}
		return "enabled"
	case serviceManual:
		return "manual"
	case serviceDisabled:
		return "disabled"
	}
	return ""
}

// stateLook is how often a service that starts or stops is polled, and retryTime how long one that is busy with
// something else is asked again.
const (
	stateLook = 100 * time.Millisecond
	retryTime = 10 * time.Second
)

// scm is a connection to the service control manager.
type scm struct{ handle windows.Handle }

func openSCM() (*scm, error) {
	handle, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT|windows.SC_MANAGER_ENUMERATE_SERVICE)
	if err != nil {
		return nil, fault.On("the service manager", fault.Cause(err))
	}
	return &scm{handle}, nil
}

func (m *scm) close() { windows.CloseServiceHandle(m.handle) }

// access opens a service. The caller closes it.
func (m *scm) access(u unit, access uint32) (*mgr.Service, error) {
	name, err := windows.UTF16PtrFromString(string(u))
	if err != nil {
		return nil, fault.Invalid("it is no name of a service")
	}
	handle, err := windows.OpenService(m.handle, name, access)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) || errors.Is(err, windows.ERROR_INVALID_NAME) {
		return nil, fault.Wrapf(fs.ErrNotExist, "there is no such service")
	}
	if err != nil {
		return nil, fault.Cause(err)
	}
	return &mgr.Service{Name: string(u), Handle: handle}, nil
}

// enumerate reads all services and drivers of the kind that programs are.
func (m *scm) enumerate() (list []*state, err error) {
	const kinds = windows.SERVICE_WIN32
	var buffer []uint64 // which is aligned
	var size, needed, count uint32
	for {
		var at *byte
		if len(buffer) > 0 {
			at = (*byte)(unsafe.Pointer(&buffer[0]))
		}
		err := windows.EnumServicesStatusEx(m.handle, windows.SC_ENUM_PROCESS_INFO, kinds, windows.SERVICE_STATE_ALL, at, size,
			&needed, &count, nil, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, windows.ERROR_MORE_DATA) || needed > 64<<20 {
			return nil, fault.On("the list of services", fault.Cause(err))
		}
		size = (size + needed + 4096) &^ 7
		buffer = make([]uint64, size/8)
	}
	if count == 0 {
		return nil, nil
	}
	entries := unsafe.Slice((*windows.ENUM_SERVICE_STATUS_PROCESS)(unsafe.Pointer(&buffer[0])), count)
	for i := range entries {
		e := &entries[i]
		s := newState(unit(windows.UTF16PtrToString(e.ServiceName)), windows.UTF16PtrToString(e.DisplayName))
		s.running(&e.ServiceStatusProcess)
		list = append(list, s)
	}
	return list, nil
}

// neverStarted is the exit code of a service that has not been started since the boot (ERROR_SERVICE_NEVER_STARTED).
const neverStarted = uint32(windows.ERROR_SERVICE_NEVER_STARTED)

// running says in a state what a service does now.
func (s *state) running(now *windows.SERVICE_STATUS_PROCESS) {
	s.pid, s.invocation, s.result = now.ProcessId, "", ""
	if now.ProcessId != 0 {
		s.invocation = strconv.FormatUint(uint64(now.ProcessId), 10)
	}
	switch svc.State(now.CurrentState) {
	case svc.Running:
		s.active, s.sub = "active", "running"
	case svc.Paused:
		s.active, s.sub = "active", "paused"
	case svc.StartPending, svc.ContinuePending:
		s.active, s.sub = "activating", "start-pending"
	case svc.StopPending, svc.PausePending:
		s.active, s.sub = "deactivating", "stop-pending"
	default:
		s.active, s.sub = "inactive", "stopped"
		if err := exitError(now); err != nil {
			s.active, s.result = "failed", err.Error()
		} else if now.Win32ExitCode != neverStarted {
			s.result = "success"
		}
	}
}

// exitError is the error that a service ended with; nil: with none.
func exitError(now *windows.SERVICE_STATUS_PROCESS) error {
	switch code := now.Win32ExitCode; {
	case code == 0 || code == neverStarted:
		return nil
	case code == uint32(windows.ERROR_SERVICE_SPECIFIC_ERROR):
		return fault.Wrapf(errFailed, "it ended with its own error %d", now.ServiceSpecificExitCode)
	default:
		return fault.Wrapf(errFailed, "it ended with error %d: %v", code, syscall.Errno(code))
	}
}

// configure reads how a service starts and what it says it is; what the agent may not read stays empty.
func (m *scm) configure(s *state) {
	service, err := m.access(s.unit, windows.SERVICE_QUERY_CONFIG)
	if err != nil {
		return
	}
	defer service.Close()
	start, err := startOf(service.Handle)
	if err != nil {
		return
	}
	s.start, s.file = start, startWord(start)
	// SERVICE_DESCRIPTION is a pointer to the text, which is after it.
	if buffer := more(service.Handle, windows.SERVICE_CONFIG_DESCRIPTION); buffer != nil {
		if text := *(**uint16)(unsafe.Pointer(&buffer[0])); text != nil {
			s.details = windows.UTF16PtrToString(text)
		}
	}
}

// startOf reads how a service starts.
func startOf(service windows.Handle) (*pb.ServiceStart, error) {
	var needed uint32
	buffer := make([]uint64, 8<<10/8) // the most that there is, as QueryServiceConfig says
	config := (*windows.QUERY_SERVICE_CONFIG)(unsafe.Pointer(&buffer[0]))
	if err := windows.QueryServiceConfig(service, config, uint32(8*len(buffer)), &needed); err != nil {
		return nil, fault.Cause(err)
	}
	start := &pb.ServiceStart{Type: config.StartType}
	if start.Type != serviceAuto {
		return start, nil
	}
	if info := more(service, windows.SERVICE_CONFIG_DELAYED_AUTO_START_INFO); info != nil {
		start.Delayed = *(*uint32)(unsafe.Pointer(&info[0])) != 0
	}
	return start, nil
}

// more reads what QueryServiceConfig2 knows of a service; nil: it cannot be read.
func more(service windows.Handle, level uint32) []uint64 {
	var needed uint32
	buffer := make([]uint64, 8<<10/8)
	if windows.QueryServiceConfig2(service, level, (*byte)(unsafe.Pointer(&buffer[0])), uint32(8*len(buffer)), &needed) != nil {
		return nil
	}
	return buffer
}

func (m *scm) unit(_ context.Context, u unit) (*state, error) {
	list, err := m.enumerate() // by which the name comes as the manager has it
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if strings.EqualFold(string(s.unit), string(u)) {
			m.configure(s)
			return s, nil
		}
	}
	// A list that is made while services come and go need not have all of them.
	service, err := m.access(u, windows.SERVICE_QUERY_STATUS)
	if err != nil {
		return nil, err
	}
	defer service.Close()
	now, err := query(service)
	if err != nil {
		return nil, err
	}
	s := newState(u, "")
	s.running(&now)
	m.configure(s)
	return s, nil
}

// newState is the state of a service of which nothing is known yet.
func newState(u unit, description string) *state {
	return &state{unit: u, description: description, load: "loaded", kind: "service", conditions: true}
}

func (m *scm) list(ctx context.Context) ([]*state, error) {
	list, err := m.enumerate()
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		m.configure(s)
	}
	return list, nil
}

func (m *scm) do(ctx context.Context, action string, u unit) error {
	access := uint32(windows.SERVICE_QUERY_STATUS)
	if action != "start" {
		access |= windows.SERVICE_STOP | windows.SERVICE_ENUMERATE_DEPENDENTS
	}
	if action != "stop" {
		access |= windows.SERVICE_START | windows.SERVICE_PAUSE_CONTINUE
	}
	service, err := m.access(u, access)
	if err != nil {
		return err
	}
	defer service.Close()
	switch action {
	case "start":
		return start(ctx, service)
	case "stop":
		return stop(ctx, service)
	case "reload":
		return reload(service)
	case "reload-or-restart":
		if err := reload(service); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	if err := stop(ctx, service); err != nil {
		return err
	}
	return start(ctx, service)
}

// query returns what a service does now.
func query(service *mgr.Service) (now windows.SERVICE_STATUS_PROCESS, err error) {
	var needed uint32
	err = windows.QueryServiceStatusEx(service.Handle, windows.SC_STATUS_PROCESS_INFO, (*byte)(unsafe.Pointer(&now)),
		uint32(unsafe.Sizeof(now)), &needed)
	return now, fault.Cause(err)
}

// await waits until a service is in a state. pending is the one that leads there: any other is an error.
func await(ctx context.Context, service *mgr.Service, want, pending svc.State) error {
	for {
		now, err := query(service)
		if err != nil {
			return err
		}
		switch have := svc.State(now.CurrentState); {
		case have == want:
			return nil
		case have != pending && have == svc.Stopped:
			if err := exitError(&now); err != nil {
				return err
			}
			return fault.Wrapf(errFailed, "it has stopped by itself, with no error")
		case have != pending && want == svc.Stopped && have == svc.Running: // what was asked of it is not seen yet
		case have != pending:
			return fault.Wrapf(errFailed, "it is in state %d", have)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context) error {
	timer := time.NewTimer(stateLook)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// unlocked calls do again for some seconds while the database of services is locked, as it is while another one starts.
func unlocked(ctx context.Context, do func() error) error {
	for until := time.Now().Add(retryTime); ; {
		err := do()
		if !errors.Is(err, windows.ERROR_SERVICE_DATABASE_LOCKED) || time.Now().After(until) {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// start starts a service, unless it runs, and waits until it does. One that is about to stop is started when it has.
func start(ctx context.Context, service *mgr.Service) error {
	now, err := query(service)
	if err != nil {
		return err
	}
	switch svc.State(now.CurrentState) {
	case svc.Running:
		return nil
	case svc.StopPending:
		if err := await(ctx, service, svc.Stopped, svc.StopPending); err != nil {
			return err
		}
	case svc.Paused:
		if _, err := service.Control(svc.Continue); err != nil {
			return fault.Cause(err)
		}
		return await(ctx, service, svc.Running, svc.ContinuePending)
	}
	switch err := unlocked(ctx, func() error { return service.Start() }); {
	case errors.Is(err, windows.ERROR_SERVICE_DISABLED):
		return errDisabled()
	case err != nil && context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case err != nil && !errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING):
		return fault.Wrapf(errFailed, "it was not started: %v", err)
	}
	return await(ctx, service, svc.Running, svc.StartPending)
}

// stop stops a service, and waits until it has. It stops no others that depend on it: they are named.
func stop(ctx context.Context, service *mgr.Service) error {
	for until := time.Now().Add(retryTime); ; {
		_, err := service.Control(svc.Stop)
		switch {
		case err == nil:
			return await(ctx, service, svc.Stopped, svc.StopPending)
		case errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE):
			return nil
		case errors.Is(err, windows.ERROR_DEPENDENT_SERVICES_RUNNING):
			names, _ := service.ListDependentServices(svc.Active)
			return &fault.Error{
				Err:  fault.Refuse("others that run depend on it: %s", strings.Join(names, ", ")),
				Hint: "stop these first",
			}
		case errors.Is(err, windows.ERROR_SERVICE_CANNOT_ACCEPT_CTRL) && time.Now().Before(until): // it starts or stops
			now, err := query(service)
			if err == nil && svc.State(now.CurrentState) == svc.StopPending {
				return await(ctx, service, svc.Stopped, svc.StopPending)
			}
			if err := pause(ctx); err != nil {
				return err
			}
		case errors.Is(err, windows.ERROR_INVALID_SERVICE_CONTROL):
			return fault.Refuse("it is a service that cannot be stopped")
		default:
			return fault.Cause(err)
		}
	}
}

// reload has a service read its parameters again, if it is one that does so.
func reload(service *mgr.Service) error {
	now, err := query(service)
	if err != nil {
		return err
	}
	if now.ControlsAccepted&windows.SERVICE_ACCEPT_PARAMCHANGE == 0 {
		return fault.Unsupported("it does not read its parameters while it runs")
	}
	_, err = service.Control(svc.ParamChange)
	return fault.Cause(err)
}

// reload has nothing to do: the manager has no files.
func (m *scm) reload(context.Context) error { return nil }

// forget has nothing to do: how a service ended hinders no start.
func (m *scm) forget(context.Context, unit) error { return nil }

// startAs changes how a service starts, and sees that it does.
func (m *scm) startAs(ctx context.Context, u unit, as *pb.ServiceStart) error {
	service, err := m.access(u, windows.SERVICE_CHANGE_CONFIG|windows.SERVICE_QUERY_CONFIG)
	if err != nil {
		return err
	}
	defer service.Close()
	have, err := startOf(service.Handle)
	if err != nil {
		return err
	}
	if have.Type != as.Type {
		const keep = math.MaxUint32 // SERVICE_NO_CHANGE
		err := unlocked(ctx, func() error {
			return windows.ChangeServiceConfig(service.Handle, keep, as.Type, keep, nil, nil, nil, nil, nil, nil, nil)
		})
		if err != nil {
			return fault.Cause(err)
		}
	}
	if as.Type == serviceAuto && have.Delayed != as.Delayed {
		var info windows.SERVICE_DELAYED_AUTO_START_INFO
		if as.Delayed {
			info.IsDelayedAutoStartUp = 1
		}
		err := windows.ChangeServiceConfig2(service.Handle, windows.SERVICE_CONFIG_DELAYED_AUTO_START_INFO,
			(*byte)(unsafe.Pointer(&info)))
		if err != nil {
			return fault.Cause(err)
		}
	}
	if have, err = startOf(service.Handle); err == nil && have.Type != as.Type {
		err = fault.Wrapf(fault.ErrOutput, "it is %s still", startWord(have))
	}
	return err
}

func (m *scm) failed(_ context.Context, s *state, words string) error {
	if s.result != "" && s.result != "success" {
		words += ": " + s.result
	}
	return fault.Wrapf(errFailed, "%s", words)
}

// own is the service that this process is; empty: none.
func (m *scm) own(context.Context) unit {
	list, err := m.enumerate()
	if err != nil {
		return ""
	}
	for _, s := range list {
		if s.pid == uint32(os.Getpid()) {
			return s.unit
		}
	}
	return ""
}
