package fsys

import (
	"strings"
	"unicode/utf8"
)

// Escape makes a name or a path valid UTF-8 for a message. Each byte that is not part of UTF-8 text becomes %80 to %FF.
// What looks like that already gets 25 behind its percent sign (%FF becomes %25FF, and that %2525FF), so that Unescape
// gives back every name; all other text, "100%" and "a%20b" as well, stays as it is.
func Escape(raw string) string {
	if utf8.ValidString(raw) && !strings.Contains(raw, "%") {
		return raw
	}
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(raw); {
		if _, size := utf8.DecodeRuneInString(raw[i:]); size > 1 {
			b.WriteString(raw[i : i+size])
			i += size
			continue
		}
		switch c := raw[i]; {
		case c >= utf8.RuneSelf:
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		case c == '%' && escapeLen(raw[i:]) > 0:
			b.WriteString("%25")
		default:
			b.WriteByte(c)
		}
		i++
	}
	return b.String()
}

// Unescape is the way back from Escape. Any text is some name's.
func Unescape(text string) string {
	if !strings.Contains(text, "%") {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		switch n := escapeLen(text[i:]); {
		case n == 3:
			b.WriteByte(unhex(text[i+1])<<4 | unhex(text[i+2]))
			i += n
		case n > 3:
			b.WriteByte('%')
			b.WriteString(text[i+3 : i+n])
			i += n
		default:
			b.WriteByte(text[i])
			i++
		}
	}
	return b.String()
}

// escapeLen is the length of the escape that s begins with: a percent sign, any number of 25, and 80 to FF; 0 if none.
func escapeLen(s string) int {
	if s[0] != '%' {
		return 0
	}
	i := 1
	for strings.HasPrefix(s[i:], "25") {
		i += 2
	}
	if len(s) < i+2 || !strings.ContainsRune("89ABCDEF", rune(s[i])) || !strings.ContainsRune("0123456789ABCDEF", rune(s[i+1])) {
		return 0
	}
	return i + 2
}

func unhex(c byte) byte {
	if c >= 'A' {
		return c - 'A' + 10
	}
	return c - '0'
}

// cut parts a path into the directory and its last element. It fails for the root, and where the last element is ".."
// or the only way to read the path is to walk it.
func cut(path string) (dir, name string, ok bool) {
	path = strings.TrimRight(path, separators)
	i := strings.LastIndexAny(path, separators)
	if i < 0 {
		return "", "", false
	}
	dir, name = path[:i+1], path[i+1:]
	if name == ".." || name == "." {
		return "", "", false
	}
	return dir, name, true
}

// join puts a name behind a resolved directory.
func join(dir, name string) string {
	if strings.HasSuffix(dir, separator) {
		return dir + name
	}
	return dir + separator + name
}

// Within says whether a resolved path is dir, or something below it. Both are resolved paths.
func Within(path, dir string) bool {
	path, dir = fold(path), fold(dir)
	return path == dir || strings.HasPrefix(path, join(dir, ""))
}
