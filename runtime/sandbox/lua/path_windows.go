package lua

import "strings"

// isAbsolute reports whether a text is an absolute path that does not go up: with the letter of a drive, and slashes of either
// kind. Paths to other machines and to devices are none.
func isAbsolute(path string) bool {
	path = strings.ReplaceAll(path, `\`, "/")
	if len(path) < 3 || path[1:3] != ":/" || !isLetter(path[0]) {
		return false
	}
	return !strings.Contains(path+"/", "/../")
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
