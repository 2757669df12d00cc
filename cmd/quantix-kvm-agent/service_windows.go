package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"

	"github.com/quantix-kvm/guest-agent/runtime/config"
)

// serviceName is that of the service and of its source in the event log.
const serviceName = "QuantixKVMAgent"

// sessionQueue is how many changes of users' sessions may wait; more are dropped, since only the present state counts.
const sessionQueue = 16

const (
	serviceTitle       = "Quantix KVM guest agent"
	serviceDescription = "Serves the host of this virtual machine: " +
		"telemetry, commands, files, and scripts that happen whole or not at all."

	// serviceWait is how long start, stop and remove wait for the service: a rollback may take as long as the agent lets it.
	serviceWait = exitAfter + 10*time.Second
	// lockedWait is how long a start waits for the manager, which starts one service at a time.
	lockedWait = 10 * time.Second
	// resetFailures is after how long, in seconds, an agent that failed counts as well.
	resetFailures = 24 * 60 * 60
)

// serviceCommands returns the commands that only this system has.
func serviceCommands(f *flags) []*cobra.Command {
	parent := &cobra.Command{
		Use:   "service",
		Short: "install, remove, start and stop the Windows service " + serviceName,
		Long: `The service runs as LocalSystem from the start of Windows, and is started again when it fails. It reads
` + config.DefaultFile + `, logs to ` + serviceLog + `, which is rotated by size,
and writes warnings and errors to the event log as well. When Windows shuts down it learns of that early, so that a script which
runs is taken back in time. "reload", as "sc control ` + serviceName + ` paramchange", has it read its configuration again.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	parent.AddCommand(
		&cobra.Command{
			Use:   "install [-- flag…]",
			Short: "make the service, or make the one there is as it has to be; flags are given to the agent",
			RunE:  func(_ *cobra.Command, args []string) error { return installService(args) },
		},
		&cobra.Command{
			Use: "remove", Short: "stop the service and remove it; its configuration and state stay", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return removeService() },
		},
		&cobra.Command{
			Use: "start", Short: "start the service, and wait until it runs", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return withService(startService) },
		},
		&cobra.Command{
			Use: "stop", Short: "stop the service, and wait until it has ended", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return withService(stopService) },
		},
		serviceRunCommand(f),
	)
	return []*cobra.Command{parent}
}

// serviceRunCommand makes what the service control manager starts.
func serviceRunCommand(f *flags) *cobra.Command {
	c := &cobra.Command{
		Use: "run", Short: "be the service; the service control manager runs this", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := privateDir(programData); err != nil {
				return err
			}
			f.logFile = serviceLog
			events, err := eventlog.Open(serviceName)
			if err == nil {
				defer events.Close()
				f.events = newEventCore(events)
				if err := withService(configureService); err != nil { // which the package does not do
					_ = events.Warning(eventNumber, err.Error())
				}
			}
			sessions := make(chan uint32, sessionQueue)
			f.sessions, f.hangups = sessions, make(chan os.Signal, 1)
			h := &serviceHandler{
				run: func(ctx context.Context) error { return run(ctx, *f) },
				sessions: func(event uint32) {
					select {
					case sessions <- event:
					default:
					}
				},
				reload: func() {
					select {
					case f.hangups <- syscall.SIGHUP:
					default: // it will be read again anyway
					}
				},
			}
			if err := svc.Run(serviceName, h); err != nil {
				return fmt.Errorf("the service control manager does not wait for this process: %w", err)
			}
			return h.err
		},
	}
	agentFlags(c.Flags(), f)
	return c
}

// installService makes the service. What there is of it already is changed; it is not started.
func installService(args []string) error {
	if err := privateDir(programData); err != nil {
		return err
	}
	m, err := mgr.Connect()
	if err != nil {
		return fmt.Errorf("service control manager: %w", err)
	}
	defer m.Disconnect()
	args = append([]string{"service", "run"}, args...)
	want := mgr.Config{
		DisplayName: serviceTitle, Description: serviceDescription, StartType: mgr.StartAutomatic,
		ErrorControl: mgr.ErrorNormal, ServiceType: windows.SERVICE_WIN32_OWN_PROCESS,
	}
	s, err := m.OpenService(serviceName)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		s, err = m.CreateService(serviceName, executable(), want, args...)
	} else if err == nil {
		want.BinaryPathName = windows.ComposeCommandLine(append([]string{executable()}, args...))
		err = s.UpdateConfig(want)
		if errors.Is(err, windows.ERROR_INVALID_LEVEL) { // as below; what had to be changed was, by then
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("service %s: %w", serviceName, err)
	}
	defer s.Close()
	if err := configureService(s); err != nil {
		return fmt.Errorf("service %s: %w", serviceName, err)
	}
	return installEventSource()
}

// configureService has the service started again when it ends by itself, and notified of a shutdown early enough.
func configureService(s *mgr.Service) error {
	again := func(after time.Duration) mgr.RecoveryAction {
		return mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: after}
	}
	actions := []mgr.RecoveryAction{again(5 * time.Second), again(5 * time.Second), again(time.Minute)}
	err := s.SetRecoveryActions(actions, resetFailures)
	if err != nil {
		return fmt.Errorf("recovery actions: %w", err)
	}
	for _, set := range []func() error{
		func() error { return s.SetRecoveryActionsOnNonCrashFailures(true) }, // it ends with a status, it does not crash
		func() error { return setPreshutdownTimeout(s, serviceWait) },
	} {
		if err := set(); err != nil && !errors.Is(err, windows.ERROR_INVALID_LEVEL) { // of an old system
			return err
		}
	}
	return nil
}

// installEventSource makes the source of the event log, with Windows' own texts, which are the message alone.
func installEventSource() error {
	err := eventlog.InstallAsEventCreate(serviceName, eventlog.Error|eventlog.Warning|eventlog.Info)
	if err != nil && !strings.Contains(err.Error(), "already exists") {
		return fmt.Errorf("event source %s: %w", serviceName, err)
	}
	return nil
}

// removeService stops and removes the service. That there is none is no error.
func removeService() error {
	err := withService(func(s *mgr.Service) error {
		return errors.Join(stopService(s), s.Delete())
	})
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		err = nil
	}
	if removed := eventlog.Remove(serviceName); removed != nil && !errors.Is(removed, windows.ERROR_FILE_NOT_FOUND) {
		err = errors.Join(err, fmt.Errorf("event source %s: %w", serviceName, removed))
	}
	return err
}

// withService opens the service for a call.
func withService(do func(*mgr.Service) error) error {
	m, err := mgr.Connect()
	if err != nil {
		return fmt.Errorf("service control manager: %w", err)
	}
	defer m.Disconnect()
	s, err := m.OpenService(serviceName)
	if err == nil {
		defer s.Close()
		err = do(s)
	}
	if err != nil {
		return fmt.Errorf("service %s: %w", serviceName, err)
	}
	return nil
}

// startService starts the service. Where the manager is starting another one and refuses, it asks again.
func startService(s *mgr.Service) error {
	err := s.Start()
	for end := time.Now().Add(lockedWait); errors.Is(err, windows.ERROR_SERVICE_DATABASE_LOCKED) && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
		err = s.Start()
	}
	if err != nil && !errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING) {
		return err
	}
	return awaitService(s, svc.Running)
}

func stopService(s *mgr.Service) error {
	if _, err := s.Control(svc.Stop); err != nil && !errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
		return err
	}
	return awaitService(s, svc.Stopped)
}

// hangUp has the agent of a process number read its configuration again. The service alone can be reached.
func hangUp(pid int) error {
	return withService(func(s *mgr.Service) error {
		status, err := s.Query()
		if err != nil {
			return err
		}
		if int(status.ProcessId) != pid {
			return fmt.Errorf("process %d is not the service, and has to be started again", pid)
		}
		_, err = s.Control(svc.ParamChange)
		return err
	})
}

// awaitService waits for a state. A service that stops while it is to start has failed.
func awaitService(s *mgr.Service, want svc.State) error {
	for deadline := time.Now().Add(serviceWait); ; time.Sleep(50 * time.Millisecond) {
		status, err := s.Query()
		switch {
		case err != nil:
			return err
		case status.State == want:
			return nil
		case status.State == svc.Stopped:
			code := max(status.Win32ExitCode, status.ServiceSpecificExitCode)
			return fmt.Errorf("it ended at once, with status %d; see %s", code, serviceLog)
		case time.Now().After(deadline):
			return fmt.Errorf("it is in state %d after %v", status.State, serviceWait)
		}
	}
}

// setPreshutdownTimeout sets how long Windows waits for the service before it shuts down, which is 10 s by itself.
func setPreshutdownTimeout(s *mgr.Service, d time.Duration) error {
	ms := uint32(d / time.Millisecond)
	return windows.ChangeServiceConfig2(s.Handle, windows.SERVICE_CONFIG_PRESHUTDOWN_INFO, asBytes(&ms))
}
