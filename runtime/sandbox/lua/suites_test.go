package lua

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	glua "github.com/yuin/gopher-lua"
	"gopkg.in/yaml.v3"
)

var updateSuites = flag.Bool("update-suites", false, "write the lists of expected differences from the test suites anew")

// suite returns the directory of a test suite, or skips the test.
func suite(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("QUANTIX_SUITES")
	if dir == "" {
		t.Skip("needs the suites: go run ./cmd/internal/rig/suites /tmp/suites, then set QUANTIX_SUITES=/tmp/suites")
	}
	return filepath.Join(dir, name)
}

// holdAgainst compares the differences from a suite with those that are expected.
func holdAgainst(t *testing.T, list string, differences []string) {
	t.Helper()
	slices.Sort(differences)
	path := filepath.Join("testdata", list)
	if *updateSuites {
		old, _ := os.ReadFile(path)
		head := ""
		for line := range strings.Lines(string(old)) {
			if line[0] == '#' {
				head += line
			}
		}
		if err := os.WriteFile(path, []byte(head+strings.Join(differences, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var expected []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			expected = append(expected, line)
		}
	}
	for _, d := range differences {
		if !slices.Contains(expected, d) {
			t.Errorf("not expected: %s", d)
		}
	}
	for _, e := range expected {
		if !slices.Contains(differences, e) {
			t.Errorf("expected, and not so: %s", e)
		}
	}
}

// decoded returns what a library makes of a document, as JSON; ok is false where it refuses it.
func decoded(t *testing.T, m *machine, library string, document []byte) (text string, ok bool) {
	t.Helper()
	f, _, err := m.compile("suite", []byte("return function(s) local v = "+library+".decode(s) return json.encode(v) end"))
	if err != nil {
		t.Fatal(err)
	}
	decode, err := m.callProtected(f)
	if err != nil {
		t.Fatal(err)
	}
	value, err := m.callProtected(decode.(*glua.LFunction), glua.LString(document))
	if err != nil {
		return "", false
	}
	return string(value.(glua.LString)), true
}

// TestSuiteOfJSON: what must be accepted is, with its value, what must be refused is, and where both are allowed no value
// is changed.
func TestSuiteOfJSON(t *testing.T) {
	m := prepared(t)
	files, err := filepath.Glob(filepath.Join(suite(t, "json"), "test_parsing", "*.json"))
	if err != nil || len(files) < 300 {
		t.Fatal("the suite has ", len(files), " files", err)
	}
	var differences []string
	for _, file := range files {
		document, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		got, ok := decoded(t, m, "json", document)
		switch {
		case name[0] == 'n' && ok:
			differences = append(differences, name+" accepted")
		case name[0] == 'y' && !ok:
			differences = append(differences, name+" refused")
		case name[0] != 'n' && ok && !sameJSON([]byte(got), document):
			differences = append(differences, name+" changed")
		}
	}
	holdAgainst(t, "json.differences", differences)
}

// sameJSON compares what two documents say, the numbers digit by digit where they are not floating point.
func sameJSON(a, b []byte) bool {
	read := func(text []byte) (any, bool) {
		d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))))
		d.UseNumber()
		var v any
		err := d.Decode(&v)
		return plainNumbers(v), err == nil
	}
	x, ok := read(a)
	y, also := read(b)
	return ok && also && reflect.DeepEqual(x, y)
}

// plainNumbers makes numbers with a point or an exponent floating point.
func plainNumbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if f, err := v.Float64(); err == nil && (strings.ContainsAny(v.String(), ".eE") || f < 1<<53 && f > -1<<53) {
			return f
		}
	case []any:
		for i := range v {
			v[i] = plainNumbers(v[i])
		}
	case map[string]any:
		for name := range v {
			v[name] = plainNumbers(v[name])
		}
	}
	return v
}

// TestSuiteOfYAML: what is no YAML is refused, and what has a value as JSON has that.
func TestSuiteOfYAML(t *testing.T) {
	m := prepared(t)
	files, err := filepath.Glob(filepath.Join(suite(t, "yaml"), "src", "*.yaml"))
	if err != nil || len(files) < 300 {
		t.Fatal("the suite has ", len(files), " files", err)
	}
	marks, tab := strings.NewReplacer("␣", " ", "↵", "", "←", "\r", "⇔", "\ufeff", "∎\n", ""), regexp.MustCompile("—*»")
	var differences []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var cases []struct {
			YAML *string `yaml:"yaml"`
			JSON *string `yaml:"json"`
			Fail bool    `yaml:"fail"`
			Skip bool    `yaml:"skip"`
		}
		if err := yaml.Unmarshal(text, &cases); err != nil {
			t.Fatal(file, err)
		}
		document := ""
		for i, c := range cases {
			if c.YAML != nil {
				document = tab.ReplaceAllString(marks.Replace(*c.YAML), "\t")
			}
			name := strings.TrimSuffix(filepath.Base(file), ".yaml")
			if len(cases) > 1 {
				name = fmt.Sprintf("%s/%02d", name, i)
			}
			got, ok := decoded(t, m, "yaml", []byte(document))
			switch {
			case c.Fail && ok:
				differences = append(differences, name+" accepted")
			case !c.Fail && c.JSON != nil && !ok:
				differences = append(differences, name+" refused")
			case !c.Fail && c.JSON != nil && !sameJSON([]byte(got), []byte(*c.JSON)):
				differences = append(differences, name+" changed")
			}
		}
	}
	holdAgainst(t, "yaml.differences", differences)
}
