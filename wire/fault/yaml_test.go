package fault

import (
	"errors"
	"testing"

	"gopkg.in/yaml.v3"
)

// TestYAML: the parser's errors have the line in which something is wrong, or where the list that has no end begins.
func TestYAML(t *testing.T) {
	for document, want := range map[string]string{
		"x: 1\ny: 2\nb: {x: y\nc: 2\n": "line 3: did not find expected ',' or '}'",
		"x: 1\nb: [x, y\nc: 2\n":       "line 2: did not find expected ',' or ']'",
		"- a\n- b\nc: d\n":             "line 3: did not find expected '-' indicator",
		"a: 1\n- b\n":                  "line 2: did not find expected key",
		"x:\n  y: 1\n z: 2\n":          "line 3: did not find expected key",
		"a:\n - b\n  - c\n- d":         "line 4: did not find expected key",
		"x: 1\n!e!foo bar: 1":          "line 2: found undefined tag handle",
		"a: 1\n}\n":                    "line 2: did not find expected key",
		"a: [1":                        "line 1: did not find expected ',' or ']'",
		"a: 1\nb:\n- {x\n\n":           "line 3: did not find expected ',' or '}'",
		"}":                            "line 1: did not find expected node content",
		"a: b: c":                      "line 1: mapping values are not allowed in this context",
		"a: 1\nb: 2\n c: 3\n":          "line 3: mapping values are not allowed in this context",
		"a: |x\n":                      "line 1: did not find expected comment or line break",
		"a: 1\n@b: 2":                  "line 2: found character that cannot start any token",
		"x: 1\ny: *unknown\n":          "unknown anchor 'unknown' referenced",
		"a: 1\nb: \x01\n":              "control characters are not allowed",
	} {
		var node yaml.Node
		if got := YAML(yaml.Unmarshal([]byte(document), &node), []byte(document)).Error(); got != want {
			t.Errorf("%q: %s, want %s", document, got, want)
		}
	}
	if got := YAML(errors.New("line 7: a second document begins"), nil).Error(); got != "line 7: a second document begins" {
		t.Error(got)
	}
}
