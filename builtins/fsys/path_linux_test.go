package fsys_test

import (
	"path"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// Package path has the rules of Linux.
func FuzzAPathIsWhatPackagePathSays(f *testing.F) {
	for _, seed := range []string{"/", "/a/b/", "a//b/../c", "", "..", "/..", "C:/a", "a\\b", "1*["} {
		f.Add(seed, "/x")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		for what, pair := range map[string][2]string{
			"Clean":  {fsys.Clean(a), path.Clean(a)},
			"Parent": {fsys.Parent(a), path.Dir(a)},
			"Base":   {fsys.Base(a), path.Base(a)},
			"Join":   {fsys.Join(a, b), path.Join(a, b)},
		} {
			if pair[0] != pair[1] {
				t.Errorf("%s of %q and %q is %q, want %q", what, a, b, pair[0], pair[1])
			}
		}
		if fsys.IsAbs(a) != path.IsAbs(a) {
			t.Errorf("IsAbs(%q) is %v", a, fsys.IsAbs(a))
		}
		got, err := fsys.Match(a, b)
		if want, wantErr := path.Match(a, b); got != want || (err == nil) != (wantErr == nil) {
			t.Errorf("Match(%q, %q) is %v, %v", a, b, got, err)
		}
	})
}

func TestLettersOfOtherCaseAreOtherFiles(t *testing.T) {
	if ok, _ := fsys.Match("/A*", "/abc"); ok || fsys.Equal("/a", "/A") || fsys.Within("/A/b", "/a") {
		t.Error("the case of letters does not count")
	}
}
