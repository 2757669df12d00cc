package proc

import (
	"strings"
	"testing"
)

// The end of a longer output does not begin with a part of a word: a secret that is cut would not be known again.
func TestTailBeginsWithAWholeWord(t *testing.T) {
	usage := strings.Repeat("usage ", 100)
	for output, want := range map[string]string{
		"short\n": "short", "words of less\n": "words of less", strings.Repeat("x", 600): strings.Repeat("x", tailSize),
		"cret" + usage[:tailSize-5] + "\n": strings.TrimSpace(usage[len("usage "):tailSize-5] + "\n"),
	} {
		tail := output[max(0, len(output)-tailSize):]
		if got := tailText([]byte(tail)); !strings.HasSuffix(want, got) || got == "" || strings.HasPrefix(got, "cret") {
			t.Errorf("%.20q… ends with %q", output, got)
		}
	}
}
