package fsys

import (
	"path/filepath"
	"strings"
)

func isSeparator(c byte) bool { return c == '\\' || c == '/' }

// wildcards are what patterns have besides names.
const wildcards = "*?["

// fold returns the form of a path in which equal paths are equal texts, with slashes of one kind.
func fold(path string) string { return strings.ToLower(filepath.ToSlash(path)) }
