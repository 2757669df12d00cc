package numeral

import (
	"fmt"
	"math"
	"strconv"
	"testing"
)

// What C prints is covered by the recorded cases of package lua; here is what they leave out.
func TestParse(t *testing.T) {
	for text, want := range map[string]float64{"0x10": 16, " -5.5e1\n": -55, "1e400": math.Inf(1), "010": 10, "00x1": -1, "nan": -1, "infinity": -1, "0x1.8": -1, "1e5 5": -1, "0b1": -1, "1_0": -1} {
		if f, ok := Parse(text); ok != (want != -1) || ok && f != want {
			t.Errorf("%q is %v, %v", text, f, ok)
		}
	}
}

func TestInt64(t *testing.T) {
	for f, want := range map[float64]int64{1.9: 1, -1.9: -1, math.Inf(1): math.MaxInt64, math.Inf(-1): math.MinInt64, 1 << 62: 1 << 62, 1e300: math.MaxInt64} {
		if got := Int64(f); got != want {
			t.Errorf("%v is %d, want %d", f, got, want)
		}
	}
	if got := Int64(math.NaN()); got != 0 {
		t.Errorf("nan is %d", got)
	}
}

// FuzzNumbers checks the laws that a number formatted with all digits is parsed as the same number, and that Go parses what
// is parsed here as the same.
func FuzzNumbers(f *testing.F) {
	f.Add(0.1, "1e5")
	f.Add(-1e300, " 0x1F")
	f.Fuzz(func(t *testing.T, number float64, text string) {
		if !math.IsInf(number, 0) && number == number {
			for _, verb := range []byte("gGeE") {
				printed := Spec{Verb: verb, Precision: 17}.Float(number)
				if back, ok := Parse(printed); !ok || back != number {
					t.Errorf("%v is printed as %s and read as %v, %v", number, printed, back, ok)
				}
				if want := fmt.Sprintf("%.17"+string(verb), number); printed != want {
					t.Errorf("%v is printed as %s, Go has %s", number, printed, want)
				}
			}
		}
		if got, ok := Parse(text); ok {
			if want, err := strconv.ParseFloat(text, 64); err == nil && want != got {
				t.Errorf("%q is read as %v, Go has %v", text, got, want)
			}
		}
	})
}
