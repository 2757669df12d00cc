package fsys_test

import (
	"slices"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

func TestWindowsPaths(t *testing.T) {
	for _, path := range []string{
		`C:\`, `C:\Windows`, `c:/windows/system32/`, `\\host\share\x\y`, `\x`, `/x/y`, `C:\a\..\b`,
	} {
		checkPathLaws(t, path)
	}
	for path, want := range map[string]bool{
		`C:\a`: true, `c:/a`: true, `\a`: true, `/a`: true, `C:a`: false, `a\b`: false, `C:`: false,
	} {
		if got := fsys.IsAbs(path); got != want {
			t.Errorf("IsAbs(%s) is %v", path, got)
		}
	}
	for path, want := range map[string]bool{
		`C:\`: true, `c:/`: true, `\`: true, `C:\a\..`: true, `C:`: false, `C:\a`: false,
	} {
		if got := fsys.IsRoot(path); got != want {
			t.Errorf("IsRoot(%s) is %v", path, got)
		}
	}
	for _, c := range []struct {
		path, dir string
		want      bool
	}{
		{`C:\Windows\System32`, `c:/windows`, true}, {`C:\WINDOWS`, `C:\Windows`, true},
		{`C:\WindowsOld`, `C:\Windows`, false},
		{`D:\Windows`, `C:\`, false}, {`c:\x`, `C:\`, true},
	} {
		if got := fsys.Within(c.path, c.dir); got != c.want {
			t.Errorf("Within(%s, %s) is %v", c.path, c.dir, got)
		}
	}
	if ok, err := fsys.Match(`c:/Users/*/a.TXT`, `C:\users\me\A.txt`); !ok || err != nil {
		t.Errorf("Match: %v, %v", ok, err)
	}
	if ok, _ := fsys.Match(`C:\*`, `C:\a\b`); ok {
		t.Error("a star matches a separator")
	}
	if got := fsys.Elements(`C:\a/b\.\..\c`); !slices.Equal(got, []string{"a", "b", "..", "c"}) {
		t.Errorf("Elements: %q", got)
	}
}
