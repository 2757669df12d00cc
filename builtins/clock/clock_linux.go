package clock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// running is the machine that the agent is a process of.
func running(g *guest.Guest) system {
	host := &hostClock{run: g.Runner, dir: "/sys/class/ptp", devices: "/dev"}
	daemons := daemons{run: g.Runner, program: "chronyc"}
	return system{
		why: maySet, now: time.Now, step: step, slew: slew,
		setRTC: func(at time.Time) (bool, error) { return setRTC(at, "/") }, hostOffset: host.offset, daemon: daemons.correct,
	}
}

// maySet returns why the agent may not set the clock: the kernel refuses it a change of nothing.
func maySet() error {
	var none unix.Timex
	if _, err := unix.Adjtimex(&none); err != nil {
		return fault.On("adjtimex", err)
	}
	if os.Geteuid() != 0 {
		return fault.Unsupported("the agent is not root")
	}
	return nil
}

// step first ends a slew that is under way: the rest of that would move the clock away again.
func step(by time.Duration) error {
	if _, err := slew(0); err != nil {
		return err
	}
	at := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &at)
}

// Modes of adjtimex(2) that x/sys does not name.
const (
	adjOffsetSingleShot = 0x8001 // ADJ_OFFSET_SINGLESHOT: as adjtime(3)
	adjOffsetRead       = 0xa001 // ADJ_OFFSET_SS_READ
)

func slew(by time.Duration) (left time.Duration, err error) {
	tx := unix.Timex{Modes: adjOffsetSingleShot, Offset: by.Microseconds()}
	if _, err := unix.Adjtimex(&tx); err != nil {
		return 0, err
	}
	tx = unix.Timex{Modes: adjOffsetRead}
	if _, err := unix.Adjtimex(&tx); err != nil {
		return 0, err
	}
	return time.Duration(tx.Offset) * time.Microsecond, nil
}

// rawTime counts by the clock that nothing corrects, neither a step nor a slew.
func rawTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &t) // never fails: the clock is older than any supported kernel
	return time.Duration(t.Nano())
}

// hostClock is the host's clock as KVM shows it to guests (drivers/ptp/ptp_kvm_common.c of the kernel).
type hostClock struct {
	run          *proc.Runner
	dir, devices string
}

const (
	kvmClockName = "KVM virtual PTP"
	kvmModule    = "ptp_kvm"
	moduleTime   = 5 * time.Second
	samples      = 7 // of two clocks: the one that took least time is the best
)

// find returns the device; an error of cause errors.ErrUnsupported: there is none.
func (h *hostClock) find() (string, error) {
	names, err := filepath.Glob(filepath.Join(h.dir, "ptp*", "clock_name"))
	for _, name := range names {
		text, readErr := os.ReadFile(name)
		if readErr == nil && strings.TrimSpace(string(text)) == kvmClockName {
			return filepath.Join(h.devices, filepath.Base(filepath.Dir(name))), nil
		}
	}
	return "", errors.Join(err, fault.Unsupported("the guest does not see a clock of its host"))
}

// offset is how far the host's clock is ahead of the guest's. The kernel's module for it, which many guests do not load by
// themselves, is loaded where load says so, and it is there and not forbidden.
func (h *hostClock) offset(ctx context.Context, load bool) (time.Duration, error) {
	device, err := h.find()
	if err != nil && load && h.run != nil {
		argv := []string{"modprobe", "--quiet", "--use-blacklist", kvmModule}
		_, _ = h.run.Run(ctx, proc.Spec{Argv: argv, Tied: true, Timeout: moduleTime})
		device, err = h.find()
	}
	if err != nil {
		return 0, err
	}
	file, err := os.Open(device)
	if err != nil {
		return 0, fault.On(device, err)
	}
	defer file.Close()
	best, took := time.Duration(0), time.Duration(-1)
	for range samples {
		offset, window, err := compare(int(file.Fd()))
		if err != nil {
			return 0, fault.On(device, err)
		}
		if took < 0 || window < took {
			best, took = offset, window
		}
	}
	return best, nil
}

// compare reads the clock of a device between two reads of the guest's own. window is the time between these.
func compare(fd int) (offset, window time.Duration, err error) {
	var before, other, after unix.Timespec
	id := int32(^fd<<3 | 3) // FD_TO_CLOCKID of clock_gettime(2)
	err = errors.Join(unix.ClockGettime(unix.CLOCK_REALTIME, &before), unix.ClockGettime(id, &other),
		unix.ClockGettime(unix.CLOCK_REALTIME, &after))
	window = time.Duration(after.Nano() - before.Nano())
	return time.Duration(other.Nano()-before.Nano()) - window/2, window, err
}

// setRTC sets the hardware clock: in UTC, or as the clocks on the wall there where adjtime(5) below root says
// LOCAL.
func setRTC(at time.Time, root string) (there bool, err error) {
	zone, err := rtcZone(root)
	if err != nil {
		return true, err
	}
	for _, device := range []string{"/dev/rtc0", "/dev/rtc"} {
		fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return true, fault.On(device, err)
		}
		defer unix.Close(fd)
		return true, fault.On(device, writeRTC(fd, at, zone))
	}
	return false, nil
}

// rtcZone returns the zone of the hardware clock.
func rtcZone(root string) (*time.Location, error) {
	text, err := os.ReadFile(filepath.Join(root, "etc/adjtime"))
	if lines := strings.Split(string(text), "\n"); err != nil || len(lines) < 3 || strings.TrimSpace(lines[2]) != "LOCAL" {
		return time.UTC, nil
	}
	data, err := os.ReadFile(filepath.Join(root, "etc/localtime")) // it may have changed since the agent started
	if errors.Is(err, os.ErrNotExist) {
		return time.UTC, nil
	}
	if err != nil {
		return nil, err
	}
	return time.LoadLocationFromTZData("Local", data)
}

// writeRTC waits for the beginning of a second, since the hardware clock has no parts of one, and reads back what it wrote.
func writeRTC(fd int, at time.Time, zone *time.Location) error {
	set := time.Now()
	next := at.Truncate(time.Second).Add(time.Second)
	time.Sleep(next.Sub(at))
	next = at.Add(time.Since(set)).Round(time.Second)
	want := rtcTime(next.In(zone))
	if err := unix.IoctlSetRTCTime(fd, &want); err != nil {
		return err
	}
	have, err := unix.IoctlGetRTCTime(fd)
	if err != nil {
		return err
	}
	year, month, day := int(have.Year)+1900, time.Month(have.Mon+1), int(have.Mday)
	told := time.Date(year, month, day, int(have.Hour), int(have.Min), int(have.Sec), 0, zone)
	if off := told.Sub(next); off.Abs() > 2*time.Second {
		return fault.Wrapf(fault.ErrOutput, "it shows another time than was written: %v off", off)
	}
	return nil
}

func rtcTime(t time.Time) unix.RTCTime {
	return unix.RTCTime{
		Sec: int32(t.Second()), Min: int32(t.Minute()), Hour: int32(t.Hour()), Mday: int32(t.Day()), Mon: int32(t.Month()) - 1,
		Year: int32(t.Year()) - 1900,
	}
}
