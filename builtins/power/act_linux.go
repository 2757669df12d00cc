package power

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// running is the machine that the agent is a process of.
func running(g *guest.Guest) machine {
	return machine{
		why: func() error {
			if os.Geteuid() != 0 {
				return fault.Unsupported("the agent is not root")
			}
			_, err := findInit("/")
			return err
		},
		tell: tellUsers,
		act: func(ctx context.Context, what string) error {
			kind, err := findInit("/")
			if err != nil {
				return err
			}
			return kind.act(ctx, g.Runner, what)
		},
	}
}

// mayDo returns why the machine cannot be shut down in a way: it can in all.
func mayDo(string) error { return nil }

// initKind is an init by the way in which it is asked to shut the machine down.
type initKind string

const (
	systemdInit initKind = "systemd"
	busyboxInit initKind = "busybox"     // by signals to process 1
	openrcInit  initKind = "openrc-init" // by openrc-shutdown
	sysvInit    initKind = "sysvinit"    // by shutdown
	runitInit   initKind = "runit"       // by runit-init
	otherInit   initKind = "other"       // by the commands that every system has: reboot, poweroff, halt
)

// findInit finds out what the init below root is, by what it is known to make of a system.
func findInit(root string) (initKind, error) {
	there := func(path string) bool {
		_, err := os.Stat(filepath.Join(root, path))
		return err == nil
	}
	if there("run/systemd/system") { // sd_booted(3)
		return systemdInit, nil
	}
	program, err := os.Readlink(filepath.Join(root, "proc/1/exe"))
	if err != nil {
		return "", fault.Unsupported("process 1 cannot be looked at: %v", fault.Cause(err))
	}
	switch base := filepath.Base(strings.TrimSuffix(program, " (deleted)")); {
	case strings.HasPrefix(base, "busybox"):
		return busyboxInit, nil
	case base == "openrc-init":
		return openrcInit, nil
	case base == "runit" || base == "runit-init":
		return runitInit, nil
	case base == "init" && (there("run/initctl") || there("dev/initctl")):
		return sysvInit, nil
	case base == "init" || base == "s6-svscan" || base == "dinit":
		return otherInit, nil
	}
	return "", fault.Unsupported("process 1, %s, is no init that is known", program)
}

// act asks the init, and returns when that has begun to shut down.
func (k initKind) act(ctx context.Context, run *proc.Runner, what string) error {
	switch k {
	case systemdInit:
		return bySystemd(ctx, what)
	case busyboxInit:
		return unix.Kill(1, busyboxSignals[what])
	}
	return byCommand(ctx, run, commands[k][what])
}

// busyboxSignals are what init of BusyBox takes for a wish (its init/init.c).
var busyboxSignals = map[string]unix.Signal{"poweroff": unix.SIGUSR2, "reboot": unix.SIGTERM, "halt": unix.SIGUSR1}

// commands are those of the inits that have no better interface.
var commands = map[initKind]map[string][]string{
	openrcInit: {
		"poweroff": {"openrc-shutdown", "--poweroff", "now"}, "reboot": {"openrc-shutdown", "--reboot", "now"},
		"halt": {"openrc-shutdown", "--halt", "now"},
	},
	sysvInit: {
		"poweroff": {"shutdown", "-P", "-h", "now"}, "reboot": {"shutdown", "-r", "now"},
		"halt": {"shutdown", "-H", "-h", "now"},
	},
	runitInit: {"poweroff": {"runit-init", "0"}, "reboot": {"runit-init", "6"}, "halt": {"runit-init", "0"}},
	otherInit: {"poweroff": {"poweroff"}, "reboot": {"reboot"}, "halt": {"halt"}},
}

// byCommand runs one that outlives the agent: the init may stop the agent before the command has ended.
func byCommand(ctx context.Context, run *proc.Runner, argv []string) error {
	if run == nil || len(argv) == 0 {
		return fault.Unsupported("no command is known")
	}
	result, err := run.Run(ctx, proc.Spec{Argv: argv})
	if err != nil {
		return fault.On(argv[0], err)
	}
	return fault.On(argv[0], result.Err())
}

const (
	logind     = "org.freedesktop.login1"
	logindPath = "/org/freedesktop/login1"
)

// logindMethods and systemdUnits are what a shutdown is called by logind and by systemd.
var (
	logindMethods = map[string]string{"poweroff": "PowerOff", "reboot": "Reboot", "halt": "Halt"}
	systemdUnits  = map[string]string{"poweroff": "poweroff.target", "reboot": "reboot.target", "halt": "halt.target"}
)

// bySystemd asks logind, which notifies the sessions; where it is not there or does not do it, systemd itself.
func bySystemd(ctx context.Context, what string) error {
	err := byLogind(ctx, what)
	absent := errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, context.DeadlineExceeded)
	if err == nil || ctx.Err() != nil || !absent { // what logind refuses, for somebody who inhibits it, is not forced
		return err
	}
	if other := startTarget(ctx, systemdUnits[what]); other != nil {
		return errors.Join(err, other)
	}
	return nil
}

func byLogind(ctx context.Context, what string) error {
	bus, err := sysbus.Open(ctx)
	if err != nil {
		return err
	}
	defer bus.Close()
	return bus.Call(ctx, logind, logindPath, logind+".Manager."+logindMethods[what], nil, false)
}

// systemdSocket is where systemd itself serves D-Bus, also where no bus runs; it is root's alone.
const systemdSocket = "/run/systemd/private"

// startTarget starts a target of systemd, in place of all that is under way.
func startTarget(ctx context.Context, unit string) error {
	late := fault.Wrapf(context.DeadlineExceeded, "systemd does not answer")
	ctx, cancel := context.WithTimeoutCause(ctx, sysbus.Timeout, late)
	defer cancel()
	conn, err := dbus.Dial("unix:path="+systemdSocket, dbus.WithContext(ctx))
	if err != nil {
		return fault.On("systemd", err)
	}
	defer conn.Close()
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))}); err != nil {
		return fault.On("systemd", err)
	}
	call := conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").
		CallWithContext(ctx, "org.freedesktop.systemd1.Manager.StartUnit", 0, unit, "replace-irreversibly")
	if call.Err != nil {
		return sysbus.Error("systemd", call.Err)
	}
	return nil
}

// bootTime returns the time since the boot of the guest, suspends included.
func bootTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // never fails: the clock is older than any supported kernel
	return time.Duration(t.Nano())
}

// waitUntil waits until that time since the boot, or until ctx ends: then it returns the cause.
func waitUntil(ctx context.Context, at time.Duration) error {
	if bootTime() >= at {
		return context.Cause(ctx)
	}
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("timerfd: %w", err)
	}
	timer := os.NewFile(uintptr(fd), "timerfd")
	defer timer.Close()
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(at))}
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
		return fmt.Errorf("timerfd: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = timer.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var expirations [8]byte
	if _, err := timer.Read(expirations[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return context.Cause(ctx)
}

// isCharDevice reports whether a path is that of a terminal, or another device of characters, and no link.
func isCharDevice(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&fs.ModeCharDevice != 0
}
