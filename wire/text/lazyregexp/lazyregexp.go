// Package lazyregexp makes regular expressions that are compiled when they are first used. The agent's program is started anew
// for each script and for many commands, and compiling all its expressions would be a good part of such a start.
package lazyregexp

import (
	"regexp"
	"sync"
)

// New returns a func that returns a regular expression, and compiles it the first time. A faulty one panics then.
func New(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}
