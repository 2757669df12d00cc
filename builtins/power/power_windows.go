package power

import (
	"context"
	"errors"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/privilege"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// running is the machine that the agent is a process of.
func running(*guest.Guest) machine { return windowsMachine(initiate) }

// initiator has Windows begin to shut down at once, and to boot again if reboot says so.
type initiator func(reboot bool) error

// windowsMachine is the running machine with another way to shut it down: tests have their own, since theirs must not.
func windowsMachine(begin initiator) machine {
	return machine{
		why: func() error {
			if err := privilege.Enable(privilege.Shutdown); err != nil {
				return fault.Unsupported("the agent may not shut Windows down: %v", err)
			}
			return nil
		},
		tell: tellSessions,
		act: func(_ context.Context, what string) error {
			if err := mayDo(what); err != nil {
				return err
			}
			return begin(what == "reboot")
		},
	}
}

// mayDo returns why Windows cannot be shut down in a way.
func mayDo(what string) error {
	if what == "halt" {
		return fault.Unsupported("Windows knows no halt: it switches the machine off, or boots it again")
	}
	return nil
}

// planned is the reason that the event log gets: somebody planned it (SHTDN_REASON_FLAG_PLANNED, of major and minor other).
const planned = 0x80000000

// initiate asks Windows itself. Programs that do not end are ended: nobody may be there to close them. What somebody else has
// scheduled is replaced.
func initiate(reboot bool) error {
	if err := privilege.Enable(privilege.Shutdown); err != nil {
		return err
	}
	err := windows.InitiateSystemShutdownEx(nil, nil, 0, true, reboot, planned)
	if errors.Is(err, windows.ERROR_SHUTDOWN_IS_SCHEDULED) {
		abort := windows.NewLazySystemDLL("advapi32.dll").NewProc("AbortSystemShutdownW")
		if done, _, err := abort.Call(0); done == 0 && !errors.Is(err, windows.ERROR_NO_SHUTDOWN_IN_PROGRESS) {
			return err
		}
		err = windows.InitiateSystemShutdownEx(nil, nil, 0, true, reboot, planned)
	}
	if errors.Is(err, windows.ERROR_SHUTDOWN_IN_PROGRESS) {
		return nil
	}
	return fault.Cause(err)
}

// title is that of a message to the users, and shownFor for how long each sees it.
const (
	title    = "quantix-kvm-agent"
	shownFor = 60 * time.Second
)

// tellSessions shows a message in each session in which somebody is logged in, and does not wait until it is read.
func tellSessions(_ context.Context, text string) {
	send := windows.NewLazySystemDLL("wtsapi32.dll").NewProc("WTSSendMessageW")
	head, err := windows.UTF16FromString(title)
	if err != nil || send.Find() != nil {
		return
	}
	body, err := windows.UTF16FromString(text)
	if err != nil {
		return
	}
	var first *windows.WTS_SESSION_INFO
	var count uint32
	if windows.WTSEnumerateSessions(0, 0, 1, &first, &count) != nil || first == nil {
		return
	}
	defer windows.WTSFreeMemory(uintptr(unsafe.Pointer(first)))
	for _, session := range unsafe.Slice(first, count) {
		if session.SessionID == 0 || session.State != windows.WTSActive {
			continue // of services, or nobody is there
		}
		var answer uint32
		const icon = 0x40 // MB_ICONINFORMATION, with one button
		_, _, _ = send.Call(0, uintptr(session.SessionID), uintptr(unsafe.Pointer(&head[0])), uintptr(2*(len(head)-1)),
			uintptr(unsafe.Pointer(&body[0])), uintptr(2*(len(body)-1)), icon, uintptr(shownFor.Seconds()),
			uintptr(unsafe.Pointer(&answer)), 0)
	}
}

// bootTime returns the time since the boot of the guest, suspends included.
func bootTime() time.Duration { return windows.DurationSinceBoot() }

// waitStep bounds how late a wait ends when the guest was suspended: the timers of a program stand still meanwhile.
const waitStep = 10 * time.Second

// waitUntil waits until that time since the boot, or until ctx ends: then it returns the cause.
func waitUntil(ctx context.Context, at time.Duration) error {
	for {
		left := at - bootTime()
		if left <= 0 || ctx.Err() != nil {
			return context.Cause(ctx)
		}
		timer := time.NewTimer(min(left, waitStep))
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}
