package lua

import "testing"

func TestPathsOfParameters(t *testing.T) {
	for path, want := range map[string]bool{
		`C:\Windows\x`: true, "c:/Windows": true, `C:\`: true, `C:\a\..\b`: false, `C:\..`: false, `C:x`: false, `\x`: false,
		"/x":             false,
		`\\host\share\x`: false, `\\?\C:\x`: false, `\\.\pipe\x`: false, "": false, "x": false, `1:\x`: false, `C:\a..b`: true,
	} {
		if got := isAbsolute(path); got != want {
			t.Errorf("%q is %v", path, got)
		}
	}
}
