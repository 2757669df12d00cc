//go:build !windows

package lua

import "strings"

// isAbsolute reports whether a text is an absolute path that does not go up.
func isAbsolute(path string) bool {
	return strings.HasPrefix(path, "/") && !strings.Contains(path+"/", "/../")
}
