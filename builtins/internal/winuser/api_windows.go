package winuser

import (
	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// user32 and kernel32 are calls that x/sys has no functions for.
func user32(name string) *windows.LazyProc {
	return windows.NewLazySystemDLL("user32.dll").NewProc(name)
}
func kernel32(name string) *windows.LazyProc {
	return windows.NewLazySystemDLL("kernel32.dll").NewProc(name)
}

// failed is the error of a call that returns 0 where it fails.
func failed(what string, result uintptr, err error) error {
	if result != 0 {
		return nil
	}
	return fault.On(what, fault.Cause(err))
}
