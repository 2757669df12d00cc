package service

import (
	"math"
	"testing"

	"github.com/godbus/dbus/v5"
)

// A number that systemd does not know is none, and not the largest there is.
func TestNumbersThatSystemdDoesNotKnow(t *testing.T) {
	for value, want := range map[any]uint64{
		uint64(math.MaxUint64): 0, uint64(math.MaxUint64 - 1): math.MaxUint64 - 1, uint64(4096): 4096, "[not set]": 0, uint64(0): 0,
	} {
		if got := known(dbus.MakeVariant(value)); got != want {
			t.Errorf("%v is %d, want %d", value, got, want)
		}
	}
}
