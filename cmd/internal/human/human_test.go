package human

import "testing"

func TestTexts(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 40: "1.0 TiB", 1<<64 - 1: "16.0 EiB"} {
		if got := Size(n); got != want {
			t.Errorf("size %d: %s", n, got)
		}
	}
	for in, want := range map[string]string{"plain ä\n\t": "plain ä\n\t", "a\x1b[0m\r\x00": `a\x1b[0m\r\x00`, "\xff": `\xff`, "\u202e": `\u202e`} {
		if got := Printable(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
