package fsys

import (
	"path/filepath"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/windows"
)

func isSeparator(c byte) bool { return c == '\\' || c == '/' }

// wildcards are what patterns have besides names.
const wildcards = "*?["

// fold returns the form of a path in which equal paths are equal texts, with slashes of one kind.
func fold(path string) string {
	path = filepath.ToSlash(path)
	for i := range len(path) {
		if path[i] >= utf8.RuneSelf {
			return strings.Map(upper, path)
		}
	}
	return strings.ToUpper(path)
}

var upcaseChar = windows.NewLazySystemDLL("ntdll.dll").NewProc("RtlUpcaseUnicodeChar")

// upper is what the file system makes of a character when it compares names: by a table of its own, which has less than that of
// Unicode. Characters beyond 16 bits have no case there.
func upper(r rune) rune {
	if r >= 'a' && r <= 'z' {
		return r - 'a' + 'A'
	}
	if r < utf8.RuneSelf || r > 0xffff {
		return r
	}
	up, _, _ := upcaseChar.Call(uintptr(r))
	return rune(uint16(up))
}
