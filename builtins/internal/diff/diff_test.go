package diff_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/builtins/internal/diff"
)

func TestUnified(t *testing.T) {
	got, truncated := diff.Unified("/etc/motd", []byte("one\ntwo\n"), []byte("one\nthree\n"))
	want := "--- a/etc/motd\n+++ b/etc/motd\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"
	if got != want || truncated {
		t.Errorf("got %q, %v", got, truncated)
	}
}

func TestUnifiedOfMissingText(t *testing.T) {
	created, _ := diff.Unified("/f", nil, []byte("x\n"))
	deleted, _ := diff.Unified("/f", []byte("x\n"), nil)
	if !strings.HasPrefix(created, "--- /dev/null\n+++ b/f\n") || !strings.HasPrefix(deleted, "--- a/f\n+++ /dev/null\n") {
		t.Errorf("created %q, deleted %q", created, deleted)
	}
}

func TestUnifiedTruncated(t *testing.T) {
	var text bytes.Buffer
	for i := range 20000 {
		fmt.Fprintf(&text, "zeile %d ä\n", i)
	}
	got, truncated := diff.Unified("/f", nil, text.Bytes())
	if !truncated || len(got) > diff.Max || !strings.HasSuffix(got, "\n") || !utf8.ValidString(got) {
		t.Errorf("length %d, truncated %v, end %q", len(got), truncated, got[max(0, len(got)-20):])
	}
	if got, truncated := diff.Unified("/f", nil, make([]byte, diff.MaxText+1)); got != "" || !truncated {
		t.Errorf("a text that is too long: %d bytes, truncated %v", len(got), truncated)
	}
}

func TestIsText(t *testing.T) {
	for content, want := range map[string]bool{"": true, "äöü\n": true, "a\x00b": false, "\xff": false} {
		if diff.IsText([]byte(content)) != want {
			t.Errorf("%q: text is %v", content, !want)
		}
	}
}
