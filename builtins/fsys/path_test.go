package fsys_test

import (
	"slices"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// checkPathLaws checks what holds for every path, on every system.
func checkPathLaws(t *testing.T, path string) {
	t.Helper()
	clean := fsys.Clean(path)
	if again := fsys.Clean(clean); again != clean {
		t.Errorf("Clean(%q) is %q, and its Clean is %q", path, clean, again)
	}
	if !fsys.IsAbs(path) {
		return
	}
	if !fsys.IsAbs(clean) {
		t.Errorf("%q is absolute, and its Clean %q is not", path, clean)
	}
	if joined := fsys.Join(fsys.Parent(clean), fsys.Base(clean)); joined != clean {
		t.Errorf("%q is joined to %q", clean, joined)
	}
	if !fsys.Within(clean, fsys.Parent(clean)) || !fsys.Within(clean, clean) || !fsys.Equal(clean, clean) {
		t.Errorf("%q is not within %q", clean, fsys.Parent(clean))
	}
	if root := fsys.Parent(clean) == clean; fsys.IsRoot(path) != root || (len(fsys.Elements(clean)) == 0) != root {
		t.Errorf("IsRoot(%q) is %v, its elements are %q", path, !root, fsys.Elements(clean))
	}
	for at, n := clean, 0; !fsys.IsRoot(at); at, n = fsys.Parent(at), n+1 {
		if n > len(path) {
			t.Fatalf("the way up from %q does not end", path)
		}
	}
}

func FuzzPathLaws(f *testing.F) {
	for _, seed := range []string{
		"/", "/a", "/a/b/", "//a//b", "/a/./b/../c", "/..", "a/b", "", ".", "/a\\b", "/%FF/\xff",
	} {
		f.Add(seed)
	}
	f.Fuzz(checkPathLaws)
}

func TestElementsOfAPath(t *testing.T) {
	for path, want := range map[string][]string{
		"/": nil, "": nil, "/a": {"a"}, "a/b": {"a", "b"}, "/a/./b//": {"a", "b"}, "/a/../b": {"a", "..", "b"},
		"/.a/b.": {".a", "b."},
	} {
		if got := fsys.Elements(path); !slices.Equal(got, want) {
			t.Errorf("Elements(%q) is %q", path, got)
		}
	}
}

func TestAPatternMatchesWithinOneElement(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"/etc/*.conf", "/etc/app.conf", true}, {"/etc/*", "/etc/a/b", false}, {"/etc/?", "/etc/a", true},
		{"/[a-c]/x", "/b/x", true},
		{"/[^a-c]/x", "/b/x", false}, {"*", "", true},
	} {
		if got, err := fsys.Match(c.pattern, c.name); got != c.want || err != nil {
			t.Errorf("Match(%q, %q) is %v, %v", c.pattern, c.name, got, err)
		}
	}
	if _, err := fsys.Match("/[", "/x"); err == nil {
		t.Error("a malformed pattern is taken")
	}
}

func TestOnlyAPathHasASeparator(t *testing.T) {
	for text, want := range map[string]bool{
		"sh": false, "": false, "a.b": false, "/bin/sh": true, "./sh": true, "a/": true,
	} {
		if got := fsys.HasSeparator(text); got != want {
			t.Errorf("HasSeparator(%q) is %v", text, got)
		}
	}
}

func TestWithinComparesElements(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{
		{"/tmp/a", "/tmp", true}, {"/tmp", "/tmp", true}, {"/tmpfoo", "/tmp", false},
		{"/tmp", "/tmp/a", false}, {"/etc", "/", true}, {"/", "/", true}, {"/", "/etc", false},
	} {
		if got := fsys.Within(c.path, c.dir); got != c.want {
			t.Errorf("Within(%s, %s) is %v", c.path, c.dir, got)
		}
	}
}
