package clip

import (
	"os"
	"testing"
)

// What is set is read back in each of its kinds.
func TestWindows(t *testing.T) {
	b, err := Open(t.Context(), os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := Set(t.Context(), b, false, []Content{{HTML, []byte("<b>grün</b>")}}); err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[Kind]string{Text: "grün", HTML: "<b>grün</b>"} {
		got, offered, err := Get(t.Context(), b, false, []Kind{kind}, MaxContent)
		if err != nil || string(got.Data) != want || len(offered) != 2 {
			t.Errorf("%s: %q of %v, %v", kind, got.Data, offered, err)
		}
	}
	if _, _, err := Get(t.Context(), b, false, []Kind{PNG}, MaxContent); err == nil {
		t.Error("there is an image")
	}
	if _, _, err := Get(t.Context(), b, true, []Kind{Text}, MaxContent); err == nil {
		t.Error("there is a selection")
	}
}
