package netplan

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

const (
	maxConfig = 256 << 10 // bytes of a file; netplan's own examples have at most 4 KiB
	maxDepth  = 16        // of keys in keys; netplan's deepest are 8
)

var (
	namePattern = lazyregexp.New(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$`)
	// plainText is what YAML reads as text without quotes, but for the words below.
	plainText = lazyregexp.New(`^[A-Za-z_][A-Za-z0-9_/-]*$`)
	// words are what YAML 1.1 or 1.2 does not read as text (YAML 1.1, "Language-Independent Types": bool, null, float).
	words = []string{"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
	// breaks are what YAML 1.1 takes for the end of a line, or does not print.
	breaks = []rune{0x7f, 0x85, 0x2028, 0x2029, 0xfeff}
)

// fileName returns the name of a file of netplan for what it was called, with or without .yaml.
func fileName(name string) (string, error) {
	stem := strings.TrimSuffix(name, ".yaml")
	if !namePattern().MatchString(stem) || strings.HasSuffix(stem, ".") {
		return "", fault.Invalid("%q is no name of a file: letters, digits, dots and hyphens, at most 100", name)
	}
	return stem + ".yaml", nil
}

// document is a file of netplan.
type document struct {
	path string // in the guest
	text []byte
	top  *yaml.Node // nil: it is empty
}

// parse reads a file. What YAML leaves open, and netplan takes one way or another, is an error: keys that stand twice, several
// documents.
func parse(path string, text []byte) (*document, error) {
	d := &document{path: path, text: text}
	if len(text) > maxConfig {
		return nil, fault.Wrapf(fault.ErrTooLarge, "it has %d bytes, the limit is %d", len(text), maxConfig)
	}
	if n := values(text); n > maxValues {
		return nil, fault.Wrapf(fault.ErrTooLarge, "it has %d values, the limit is %d", n, maxValues)
	}
	if !utf8.Valid(text) {
		return nil, fault.Invalid("it is not UTF-8")
	}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		if strings.Contains(indent, "\t") && strings.TrimSpace(line) != "" {
			return nil, fault.Invalid("line %d begins with a tab; YAML is indented by spaces alone", number)
		}
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(text)))
	var node, more yaml.Node
	err := decoder.Decode(&node)
	if errors.Is(err, io.EOF) {
		return d, nil
	}
	if err == nil {
		if end := decoder.Decode(&more); end == nil {
			err = fmt.Errorf("line %d: a second document begins, and there may be one", more.Line)
		} else if !errors.Is(end, io.EOF) {
			err = end
		}
	}
	if err != nil {
		return nil, fault.Invalid("%s", fault.YAML(err, text))
	}
	if len(node.Content) > 0 && node.Content[0].ShortTag() != "!!null" {
		d.top = node.Content[0]
		if err := checkKeys(d.top, "", 0); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// checkKeys refuses keys that stand twice in one place, and what is not one value in one place.
func checkKeys(n *yaml.Node, key string, depth int) error {
	switch {
	case depth > maxDepth:
		return fault.Invalid("line %d: nested deeper than %d", n.Line, maxDepth)
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return fault.Invalid("line %d: %s refers to another place; write it out", n.Line, key)
	case n.Kind == yaml.SequenceNode:
		for _, element := range n.Content {
			if err := checkKeys(element, key, depth+1); err != nil {
				return err
			}
		}
	case n.Kind == yaml.MappingNode:
		seen := map[string]int{}
		for name, value := range pairs(n) {
			if name.Kind != yaml.ScalarNode || name.ShortTag() == "!!merge" {
				return fault.Invalid("line %d: a key must be a word", name.Line)
			}
			inner := join(key, name.Value)
			if first, twice := seen[name.Value]; twice {
				return fault.Invalid("line %d: the key %s stands there twice, first in line %d", name.Line, inner, first)
			}
			seen[name.Value] = name.Line
			if err := checkKeys(value, inner, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

func join(key, name string) string {
	if key == "" || key == "network" {
		return name // as netplan's documentation calls them
	}
	return key + "." + name
}

// pairs are the keys and values of a mapping; of anything else there are none.
func pairs(n *yaml.Node) func(yield func(key, value *yaml.Node) bool) {
	return func(yield func(key, value *yaml.Node) bool) {
		if n == nil || n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if !yield(n.Content[i], n.Content[i+1]) {
				return
			}
		}
	}
}

// at returns the value at keys below a mapping; nil: there is none.
func at(n *yaml.Node, keys ...string) *yaml.Node {
	for _, key := range keys {
		var next *yaml.Node
		for name, value := range pairs(n) {
			if name.Value == key {
				next = value
			}
		}
		n = next
	}
	return n
}

// network is what the file says; nil: nothing.
func (d *document) network() *yaml.Node { return at(d.top, "network") }

// interfaces are the interfaces that the file speaks of, as kind and name.
func (d *document) interfaces() (list [][2]string) {
	for kind, group := range pairs(d.network()) {
		for name := range pairs(group) {
			list = append(list, [2]string{kind.Value, name.Value})
		}
	}
	return list
}

// find returns the key and the line of the first value of an interface that is an address; empty: it is nowhere.
func (d *document) find(name string, addr netip.Addr) (key string, line int) {
	for kind, group := range pairs(d.network()) {
		if key, line = findAddr(at(group, name), join(kind.Value, name), addr); line > 0 {
			return key, line
		}
	}
	return "", 0
}

func findAddr(n *yaml.Node, key string, addr netip.Addr) (string, int) {
	switch {
	case n == nil:
	case n.Kind == yaml.ScalarNode:
		if have, err := netip.ParseAddr(n.Value); err == nil && have == addr {
			return key, n.Line
		}
	case n.Kind == yaml.SequenceNode:
		for _, element := range n.Content {
			if key, line := findAddr(element, key, addr); line > 0 {
				return key, line
			}
		}
	default:
		for name, value := range pairs(n) {
			if key, line := findAddr(value, join(key, name.Value), addr); line > 0 {
				return key, line
			}
		}
	}
	return "", 0
}

// maxName is the length of the longest interface name, in bytes: IFNAMSIZ of Linux's if.h less the NUL.
const maxName = 15

// checkNames refuses names of interfaces that are longer: netplan takes them, and the renderer passes over what has one. Of what is
// hardware the key is no name.
func (d *document) checkNames() error {
	for kind, group := range pairs(d.network()) {
		made := !slices.Contains([]string{"ethernets", "wifis", "modems", "nm-devices"}, kind.Value)
		for name, value := range pairs(group) {
			if other := at(value, "set-name"); other != nil {
				name = other
			} else if !made {
				continue
			}
			if len(name.Value) > maxName {
				return fault.Invalid("line %d: %s has %d characters, and an interface has a name of at most %d",
					name.Line, name.Value, len(name.Value), maxName)
			}
		}
	}
	return nil
}

// required returns an error about a file that says nothing, or nothing that netplan would read.
func (d *document) required() error {
	switch top := d.top; {
	case top == nil:
		return fault.Invalid("it says nothing; remove the file instead")
	case top.Kind != yaml.MappingNode:
		return fault.Invalid("line %d: a key was expected: network", top.Line)
	case at(top, "network") == nil:
		return fault.Invalid("there is no key network, below which all others stand")
	}
	return nil
}

func baseName(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// yamlOf returns the text of a configuration: that which was given, or that of a table.
func yamlOf(config *pb.LuaValue) ([]byte, error) {
	switch v := config.GetKind().(type) {
	case *pb.LuaValue_String_:
		return v.String_, nil
	case *pb.LuaValue_Table:
		var text strings.Builder
		if err := writeMapping(&text, v.Table, "", "config"); err != nil {
			return nil, err
		}
		return []byte(text.String()), nil
	}
	return nil, fault.Invalid("config must be YAML or a table")
}

// writeMapping writes a table as the keys of a mapping, in one order whatever the table's is: version and renderer first.
func writeMapping(out *strings.Builder, table *pb.LuaTable, indent, key string) error {
	if len(table.GetArray()) > 0 {
		return fault.Invalid("%s: names were expected, and there is a list", key)
	}
	if len(indent) > 2*maxDepth {
		return fault.Invalid("%s: nested deeper than %d", key, maxDepth)
	}
	fields := slices.Clone(table.GetFields())
	rank := func(f *pb.LuaField) string {
		if at := slices.Index([]string{"version", "renderer"}, string(f.GetKey())); at >= 0 {
			return strconv.Itoa(at)
		}
		return "z" + string(f.GetKey())
	}
	slices.SortFunc(fields, func(a, b *pb.LuaField) int { return strings.Compare(rank(a), rank(b)) })
	for _, f := range fields {
		inner := key + "." + string(f.GetKey())
		name, err := quoted(f.GetKey(), inner)
		if err != nil {
			return err
		}
		out.WriteString(indent + name + ":")
		if err := writeValue(out, f.GetValue(), indent+"  ", inner); err != nil {
			return err
		}
	}
	return nil
}

// writeValue writes what follows a colon or a hyphen, and the end of the line.
func writeValue(out *strings.Builder, v *pb.LuaValue, indent, key string) error {
	table := v.GetTable()
	switch {
	case table == nil:
		text, err := scalarText(v, key)
		if err != nil {
			return err
		}
		out.WriteString(" " + text + "\n")
		return nil
	case len(table.GetArray()) > 0 && len(table.GetFields()) > 0:
		return fault.Invalid("%s has both names and a list", key)
	case len(table.GetArray()) > 0:
		out.WriteString("\n")
		for i, element := range table.GetArray() {
			out.WriteString(indent + "-")
			if err := writeElement(out, element, indent+"  ", fmt.Sprintf("%s[%d]", key, i+1)); err != nil {
				return err
			}
		}
		return nil
	case len(table.GetFields()) == 0 && table.GetList():
		out.WriteString(" []\n")
		return nil
	case len(table.GetFields()) == 0:
		out.WriteString(" {}\n")
		return nil
	}
	out.WriteString("\n")
	return writeMapping(out, table, indent, key)
}

// writeElement puts the first key of a mapping beside the hyphen.
func writeElement(out *strings.Builder, v *pb.LuaValue, indent, key string) error {
	if table := v.GetTable(); len(table.GetFields()) > 0 && len(table.GetArray()) == 0 {
		var inner strings.Builder
		if err := writeMapping(&inner, table, indent, key); err != nil {
			return err
		}
		out.WriteString(" " + strings.TrimPrefix(inner.String(), indent))
		return nil
	}
	return writeValue(out, v, indent, key)
}

func scalarText(v *pb.LuaValue, key string) (string, error) {
	switch v := v.GetKind().(type) {
	case *pb.LuaValue_Boolean:
		return strconv.FormatBool(v.Boolean), nil
	case *pb.LuaValue_Number:
		if v.Number != math.Trunc(v.Number) || math.Abs(v.Number) > 1<<53 {
			return "", fault.Invalid("%s is %v, which is no whole number; give it as text", key, v.Number)
		}
		return strconv.FormatFloat(v.Number, 'f', 0, 64), nil
	case *pb.LuaValue_String_:
		return quoted(v.String_, key)
	}
	return "", fault.Invalid("%s has no value", key)
}

// quoted returns a text as YAML that cannot be read as anything else.
func quoted(text []byte, key string) (string, error) {
	s := string(text)
	if !utf8.ValidString(s) {
		return "", fault.Invalid("%s is not UTF-8", key)
	}
	if strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || slices.Contains(breaks, c) }) {
		return "", fault.Invalid("%s has a control character", key)
	}
	if plainText().MatchString(s) && !slices.Contains(words, strings.ToLower(s)) {
		return s, nil
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`, nil
}
