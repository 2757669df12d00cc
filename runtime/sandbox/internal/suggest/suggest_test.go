package suggest

import "testing"

func TestWord(t *testing.T) {
	words := []string{"mode", "owner", "group", "parents", "backup"}
	for given, want := range map[string]string{
		"mod": "mode", "ower": "owner", "parent": "parents", "gruop": "group", "x": "", "zzzzz": "", "": "", "mode": "mode",
	} {
		if got := Closest(given, words); got != want {
			t.Errorf("Word(%q) is %q, want %q", given, got, want)
		}
	}
}
