package text

import (
	"errors"
	"path"
	"strings"
	"unicode/utf8"
)

// Glob returns the pattern of package path that a pattern of a shell, of *, ? and [a-z], stands for: there [!a] is [^a], and
// "]" and "-" are themselves where they cannot be anything else. The error says what is no pattern, or means something to a
// shell and nothing here.
func Glob(pattern string) (string, error) {
	var out strings.Builder
	for i := 0; i < len(pattern); {
		n := 1
		switch rest := pattern[i:]; rest[0] {
		case '\\':
			n = 2
		case '{':
			return "", errors.New(`braces are not known in a pattern; write \{ for the character`)
		case '*':
			if strings.HasPrefix(rest, "**") {
				return "", errors.New("** is not known in a pattern; write one * for each directory")
			}
		case '[':
			class, size, err := globClass(rest)
			if err != nil {
				return "", err
			}
			out.WriteString(class)
			i += size
			continue
		}
		if i+n > len(pattern) {
			return "", errNoGlob
		}
		out.WriteString(pattern[i : i+n])
		i += n
	}
	if _, err := path.Match(out.String(), ""); err != nil {
		return "", errNoGlob
	}
	return out.String(), nil
}

var errNoGlob = errors.New("is no pattern")

// globClass returns the class that a text begins with, in the form of package path, and its size in the text.
func globClass(text string) (class string, size int, err error) {
	var out strings.Builder
	out.WriteByte('[')
	i := 1
	if strings.HasPrefix(text[i:], "!") || strings.HasPrefix(text[i:], "^") {
		out.WriteByte('^')
		i++
	}
	for first := i; ; {
		switch rest := text[i:]; {
		case rest == "":
			return "", 0, errNoGlob
		case rest[0] == ']' && i > first:
			out.WriteByte(']')
			return out.String(), i + 1, nil
		case rest[0] == '[' && len(rest) > 1 && strings.IndexByte(":.=", rest[1]) >= 0:
			return "", 0, errors.New("named classes are not known in a pattern; write a range, such as [0-9]")
		}
		n, err := globChar(&out, text[i:])
		if err != nil {
			return "", 0, err
		}
		if i += n; len(text) > i+1 && text[i] == '-' && text[i+1] != ']' {
			out.WriteByte('-')
			if n, err = globChar(&out, text[i+1:]); err != nil {
				return "", 0, err
			}
			i += 1 + n
		}
	}
}

// globChar writes the character of a class that a text begins with, and returns its size in the text.
func globChar(out *strings.Builder, text string) (size int, err error) {
	switch c := text[0]; c {
	case '/': // it ends the element of the path
		return 0, errNoGlob
	case '\\':
		if len(text) == 1 {
			return 0, errNoGlob
		}
		_, n := utf8.DecodeRuneInString(text[1:])
		out.WriteString(text[:1+n])
		return 1 + n, nil
	case '-', ']': // "[" and, after another, "^" are themselves there, too
		out.WriteByte('\\')
	}
	_, size = utf8.DecodeRuneInString(text)
	out.WriteString(text[:size])
	return size, nil
}
