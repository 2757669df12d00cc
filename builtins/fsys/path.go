package fsys

import (
	slashpath "path"
	"path/filepath"
	"strings"
)

// The functions of this file work on the text of guest paths, escaped or not, and look at no file. They are what
// package path has for paths with slashes, by the rules of the guest's system: on Windows a path may have a volume and
// both kinds of slashes, and the case of letters does not count.

// Join joins elements into one clean path; empty elements are ignored.
func Join(elements ...string) string { return filepath.Join(elements...) }

// Parent returns all but the last element of a path, as a clean path, as path.Dir does; the root's is the root.
func Parent(path string) string { return filepath.Dir(path) }

// Base returns the last element of a path, without slashes at the end; of a root it is a slash, and of "" it is ".".
func Base(path string) string { return filepath.Base(path) }

// Clean returns the shortest form of a path that its text allows: without ".", "..", double slashes and slashes at the
// end. Where an element before a ".." is a link, that is the path of something else: see Root.Resolve.
func Clean(path string) string { return filepath.Clean(path) }

// IsAbs reports whether a path begins at a root, with or without a volume.
func IsAbs(path string) bool {
	rest := path[len(filepath.VolumeName(path)):]
	return rest != "" && isSeparator(rest[0])
}

// IsRoot reports whether the clean form of a path is a root.
func IsRoot(path string) bool {
	if !IsAbs(path) {
		return false
	}
	clean := Clean(path)
	return len(clean) == len(filepath.VolumeName(clean))+1
}

// HasSeparator reports whether a text is more than a bare name. A program that is called by a bare name is looked for in
// PATH.
func HasSeparator(text string) bool {
	return filepath.VolumeName(text) != "" || strings.ContainsFunc(text, isSeparatorRune)
}

// Elements returns the elements of a path without its volume, but for empty ones and ".". It keeps "..".
func Elements(path string) []string {
	path = path[len(filepath.VolumeName(path)):]
	var list []string
	for element := range strings.FieldsFuncSeq(path, isSeparatorRune) {
		if element != "." {
			list = append(list, element)
		}
	}
	return list
}

// Match reports whether a name matches a pattern of package path, in which "*" and "?" match no separator. The error says
// that the pattern is malformed, whatever the name. Windows patterns have no escapes, since "\" is a separator there.
func Match(pattern, name string) (bool, error) { return slashpath.Match(fold(pattern), fold(name)) }

// Wildcard returns the index of the first byte of a pattern of Match that does not stand for itself; -1: there is none.
func Wildcard(pattern string) int { return strings.IndexAny(pattern, wildcards) }

// Equal reports whether two clean paths are the same.
func Equal(a, b string) bool { return fold(a) == fold(b) }

// Within reports whether a path is dir, or something below it. Both are clean paths; to compare what they lead to, both
// must be resolved.
func Within(path, dir string) bool {
	path, dir = fold(path), fold(dir)
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// splitLast splits a path into its directory and its last element. It is not ok for the root, and where the last
// element is "." or "..", which mean nothing without the directory.
func splitLast(path string) (dir, name string, ok bool) {
	path = strings.TrimRightFunc(path, isSeparatorRune)
	i := strings.LastIndexFunc(path, isSeparatorRune)
	if i < 0 {
		return "", "", false
	}
	dir, name = path[:i+1], path[i+1:]
	if name == ".." || name == "." {
		return "", "", false
	}
	return dir, name, true
}

// appendName appends a name to a resolved directory.
func appendName(dir, name string) string {
	if endsWithSeparator(dir) {
		return dir + name
	}
	return dir + string(filepath.Separator) + name
}

func endsWithSeparator(path string) bool { return path != "" && isSeparator(path[len(path)-1]) }

func isSeparatorRune(r rune) bool { return r < 0x80 && isSeparator(byte(r)) }
