package lua

import (
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	glua "github.com/yuin/gopher-lua"
	"gopkg.in/yaml.v3"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/framing"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// maxYAML is the longest text that yaml.decode accepts, in bytes: the parser needs some hundred bytes for each of them
// at worst, and the rest of the memory limit is the script's.
const maxYAML = 1 << 20

// openYAML defines yaml.encode and yaml.decode.
func (m *machine) openYAML() {
	m.library("yaml", map[string]glua.LGFunction{"encode": m.encodeYAML, "decode": m.decodeYAML})
}

// decodeYAML returns the value of one document. What would be lost or mean something else in Lua is an error that names
// its line.
func (m *machine) decodeYAML(L *glua.LState) int {
	text := L.CheckString(1)
	if len(text) > maxYAML {
		m.raiseError("yaml.decode", tooLarge, fmt.Sprintf("the text has %d bytes, the limit is %d", len(text), maxYAML))
	}
	decoder := yaml.NewDecoder(strings.NewReader(text))
	var document, more yaml.Node
	err := decoder.Decode(&document)
	if err == io.EOF { // nothing but comments
		L.Push(m.null)
		return 1
	}
	if err == nil {
		if end := decoder.Decode(&more); end == nil {
			err = fmt.Errorf("line %d: a second document begins, and there may be one", more.Line)
		} else if end != io.EOF {
			err = end
		}
	}
	var value glua.LValue
	if err == nil {
		r := &yamlReader{m: m, left: framing.MaxFromRunner}
		value, err = r.read(document.Content[0], 0)
	}
	if err != nil {
		m.raiseError("yaml.decode", "invalid", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	L.Push(value)
	return 1
}

// yamlReader makes Lua values of a parsed document. Every node that it visits counts, also each time that an alias
// leads there: a few lines of aliases can stand for billions of values.
type yamlReader struct {
	m    *machine
	left int
}

func (r *yamlReader) read(n *yaml.Node, depth int) (glua.LValue, error) {
	if r.left--; r.left < 0 {
		return nil, fmt.Errorf("line %d: more than %d values", n.Line, framing.MaxFromRunner)
	}
	if depth > framing.MaxNesting {
		return nil, fmt.Errorf("line %d: nested deeper than %d", n.Line, framing.MaxNesting)
	}
	switch n.Kind {
	case yaml.AliasNode:
		return r.read(n.Alias, depth+1)
	case yaml.ScalarNode:
		return r.scalar(n)
	case yaml.SequenceNode:
		return r.sequence(n, depth)
	case yaml.MappingNode:
		return r.mapping(n, depth)
	}
	return nil, fmt.Errorf("line %d: this is no value", n.Line)
}

func (r *yamlReader) sequence(n *yaml.Node, depth int) (glua.LValue, error) {
	t := r.m.L.NewTable()
	for i, element := range n.Content {
		value, err := r.read(element, depth+1)
		if err != nil {
			return nil, err
		}
		t.RawSetInt(i+1, value)
	}
	if len(n.Content) == 0 {
		t.Metatable = r.m.listMetatable
	}
	return t, nil
}

// mapping uses the text of each key as a string, also where it looks like a number: a table with a number as a key
// would be a list.
func (r *yamlReader) mapping(n *yaml.Node, depth int) (glua.LValue, error) {
	t := r.m.L.NewTable()
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		switch {
		case key.Kind != yaml.ScalarNode:
			return nil, fmt.Errorf("line %d: a key must be one word or text", key.Line)
		case key.ShortTag() == "!!merge":
			return nil, fmt.Errorf("line %d: << is not supported; write the keys out", key.Line)
		case t.RawGetString(key.Value) != glua.LNil:
			return nil, fmt.Errorf("line %d: the key %s stands there a second time", key.Line, key.Value)
		}
		value, err := r.read(n.Content[i+1], depth+1)
		if err != nil {
			return nil, err
		}
		t.RawSetString(key.Value, value)
	}
	return t, nil
}

// scalar reads numbers and booleans as YAML 1.2 does, and 0644 as octal, which YAML 1.1 and most files mean by it. A
// time stays text.
func (r *yamlReader) scalar(n *yaml.Node) (glua.LValue, error) {
	switch n.ShortTag() {
	case "!!null":
		return r.m.null, nil
	case "!!bool":
		var b bool
		err := n.Decode(&b)
		return glua.LBool(b), err
	case "!!int":
		var i int64
		if err := n.Decode(&i); err != nil || i > 1<<53 || i < -1<<53 {
			return nil, fmt.Errorf("line %d: a number in Lua cannot be %s exactly; make it text, with quotes", n.Line, n.Value)
		}
		return glua.LNumber(i), nil
	case "!!float":
		var f float64
		if err := n.Decode(&f); err != nil {
			return nil, fmt.Errorf("line %d: %s is no number", n.Line, n.Value)
		}
		if whole, ok := wholeNumber(strings.ReplaceAll(strings.TrimLeft(n.Value, "+-"), "_", "")); ok && !isExact(whole, math.Abs(f)) {
			return nil, fmt.Errorf("line %d: a number in Lua cannot be %s exactly; make it text, with quotes", n.Line, n.Value)
		}
		return glua.LNumber(f), nil
	case "!!binary":
		var s string
		if err := n.Decode(&s); err != nil {
			return nil, fmt.Errorf("line %d: this is not base64", n.Line)
		}
		return glua.LString(s), nil
	case "!!str", "!!timestamp":
		return glua.LString(n.Value), nil
	default:
		return nil, fmt.Errorf("line %d: the type %s is not known", n.Line, n.Tag)
	}
}

func (m *machine) encodeYAML(L *glua.LState) int {
	value, err := m.toValue(L.CheckAny(1))
	var out strings.Builder
	if err == nil {
		var n *yaml.Node
		if n, err = yamlNode(value); err == nil {
			encoder := yaml.NewEncoder(&out)
			encoder.SetIndent(2)
			err = encoder.Encode(n)
		}
	}
	if err != nil {
		m.raiseError("yaml.encode", "invalid", "value"+err.Error())
	}
	L.Push(glua.LString(out.String()))
	return 1
}

// yamlNode keeps the order of fields. An empty table is a mapping unless json.array made it.
func yamlNode(v *pb.LuaValue) (*yaml.Node, error) {
	plain := func(tag, text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: text} }
	switch v := v.GetKind().(type) {
	case *pb.LuaValue_Boolean:
		return plain("!!bool", strconv.FormatBool(v.Boolean)), nil
	case *pb.LuaValue_Number:
		if math.IsNaN(v.Number) || math.IsInf(v.Number, 0) {
			return nil, fmt.Errorf(": %v is no number for a file", v.Number)
		}
		text := strconv.FormatFloat(v.Number, jsonFormat(v.Number), -1, 64)
		if mantissa, exponent, ok := strings.Cut(text, "e"); ok && !strings.Contains(mantissa, ".") {
			text = mantissa + ".0e" + exponent // without a point it is text to readers of YAML 1.1
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Value: text}, nil // without a tag, which would be written for some numbers
	case *pb.LuaValue_String_:
		return yamlText(v.String_)
	case *pb.LuaValue_Table:
		return yamlTable(v.Table)
	}
	return plain("!!null", "null"), nil
}

func yamlTable(t *pb.LuaTable) (*yaml.Node, error) {
	if len(t.GetArray()) > 0 && len(t.GetFields()) > 0 {
		return nil, fmt.Errorf(": a table is a list or has names, not both (%s)", t.GetFields()[0].GetKey())
	}
	if len(t.GetArray()) > 0 || t.GetList() && len(t.GetFields()) == 0 {
		out := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for i, v := range t.GetArray() {
			n, err := yamlNode(v)
			if err != nil {
				return nil, fmt.Errorf("[%d]%w", i+1, err)
			}
			out.Content = append(out.Content, n)
		}
		return out, nil
	}
	out := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, f := range t.GetFields() {
		key, err := yamlText(f.GetKey())
		if err != nil {
			return nil, err
		}
		n, err := yamlNode(f.GetValue())
		if err != nil {
			return nil, fmt.Errorf(".%s%w", f.GetKey(), err)
		}
		out.Content = append(out.Content, key, n)
	}
	return out, nil
}

var (
	// yamlWord matches text that every reader of YAML 1.1 and 1.2 takes for text, but for yamlAmbiguousWord.
	yamlWord = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./@+-]*( [A-Za-z0-9_/][A-Za-z0-9_./@+-]*)*$`)
	// yamlAmbiguousWord matches words that are a boolean or null to one of them.
	yamlAmbiguousWord = regexp.MustCompile(`^(?i:y|n|yes|no|on|off|true|false|null)$`)
	// yamlLines matches text that can be written as a literal block without a change.
	yamlLines = regexp.MustCompile(`^([!-~]([ -~]*[!-~])?\n)+$`)
)

// yamlText returns text as a node that is text again when it is read: quoted where it could be taken for something
// else.
func yamlText(s []byte) (*yaml.Node, error) {
	if !utf8.Valid(s) {
		return nil, fmt.Errorf(": a string is not UTF-8; base64.encode it")
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: string(s)}
	switch {
	case yamlWord.Match(s) && !yamlAmbiguousWord.Match(s):
	case yamlLines.Match(s):
		n.Style = yaml.LiteralStyle
	default:
		n.Style = yaml.DoubleQuotedStyle
	}
	return n, nil
}
