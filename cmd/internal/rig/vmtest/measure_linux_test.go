package vmtest

import (
	"context"
	"testing"
)

func TestMeasureUnixPair(t *testing.T) {
	f, err := MeasureUnixPair(t.Context(), Load{RoundTrips: 200, Bytes: 4<<20 + 1})
	if err != nil || f.ToGuest <= 0 || f.FromGuest <= 0 || f.RoundTrip.Median <= 0 {
		t.Fatalf("got %+v, %v", f, err)
	}
	t.Log(f)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := MeasureUnixPair(ctx, Load{}); err == nil {
		t.Error("a cancelled measurement went on")
	}
}
