package registry

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
)

// One key has one name by which rules know it, but for the case of its letters.
func TestPaths(t *testing.T) {
	for _, c := range []struct {
		text string
		view uint32
		want string // empty: it is refused
	}{
		{`HKLM\SOFTWARE\Maker`, 0, `HKLM\SOFTWARE\Maker`},
		{`hkey_local_machine\Software\Maker\`, 64, `HKLM\Software\Maker`},
		{`HKLM\SOFTWARE\Maker`, 32, `HKLM32\SOFTWARE\Maker`},
		{`HKU\S-1-5-18\Software`, 0, `HKU\S-1-5-18\Software`},
		{`HKLM\a/b c.d`, 0, `HKLM\a/b c.d`},
		{`HKLM`, 0, ""}, {`HKLM\`, 0, ""}, {`HKLM\\x`, 0, ""}, {`HKLM\x\\y`, 0, ""}, {`\\host\HKLM\x`, 0, ""}, {`SOFTWARE\x`, 0, ""},
		{`HKCU\x`, 0, ""}, {`HKCR\.txt`, 0, ""}, {`HKLM\x`, 16, ""}, {"HKLM\\a\x00b", 0, ""}, {"HKLM\\\xff", 0, ""},
		{`HKLM\` + strings.Repeat("x", 256), 0, ""}, {`HKLM` + strings.Repeat(`\x`, 600), 0, ""}, {`HKLM/SOFTWARE/x`, 0, ""}, {"",
			0, ""},
	} {
		p, err := parsePath(c.text, c.view)
		if c.want == "" {
			if !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%.40q is %v: %v", c.text, p, err)
			}
			continue
		}
		if err != nil || p.String() != c.want {
			t.Errorf("%q is %v, want %s: %v", c.text, p, c.want, err)
		}
		if got := access(c.text, c.view).Objects[0].Name; got != c.want {
			t.Errorf("rules know %q as %s", c.text, got)
		}
	}
}
