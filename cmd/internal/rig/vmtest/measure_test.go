package vmtest

import (
	"testing"
	"time"
)

func TestSummarize(t *testing.T) {
	var times []time.Duration
	for i := range 200 {
		times = append(times, time.Duration(200-i))
	}
	if got := Summarize(times); got.Median != 101 || got.P99 != 199 {
		t.Errorf("got %+v", got)
	}
	if got := Summarize(nil); got != (Latency{}) {
		t.Errorf("nothing gives %+v", got)
	}
}
