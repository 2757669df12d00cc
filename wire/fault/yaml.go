package fault

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

var (
	// yamlStructure matches what the YAML parser says of how a document is built, the lines of which it counts from 0.
	yamlStructure = lazyregexp.New(`^did not find expected (key|node content|'-' indicator|',' or '[\]}]'|<.*>)$|` +
		`^found (duplicate|incompatible|undefined tag handle)`)
	// yamlAnywhere matches what it says without a line, wherever that is.
	yamlAnywhere = lazyregexp.New(`^(unknown anchor|anchor|control characters|invalid|incomplete|input error|found unexpected low)`)
)

// YAML returns an error of the YAML parser about a document with the line that is meant. The parser tells that of the line
// before for some errors, and none on the first line.
func YAML(err error, document []byte) error {
	said := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 0
	if rest, ok := strings.CutPrefix(said, "line "); ok {
		number, what, _ := strings.Cut(rest, ": ")
		if n, err := strconv.Atoi(number); err == nil {
			line, said = n, what
		}
	}
	switch {
	case yamlStructure().MatchString(said):
		line = min(line+1, bytes.Count(bytes.TrimRight(document, "\n"), []byte("\n"))+1) // it may be the end
	case line == 0 && yamlAnywhere().MatchString(said):
		return errors.New(said)
	case line == 0:
		line = 1
	}
	return fmt.Errorf("line %d: %s", line, said)
}
