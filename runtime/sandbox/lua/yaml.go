package lua

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	glua "github.com/yuin/gopher-lua"
	"gopkg.in/yaml.v3"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/framing"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
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
	r := &yamlReader{m: m, left: framing.MaxFromRunner}
	text, err := r.directives(text)
	var document *yaml.Node
	if err == nil {
		document, err = parseYAML(text)
	}
	if err == io.EOF { // nothing but comments
		L.Push(m.null)
		return 1
	}
	var value glua.LValue
	if err == nil {
		value, err = r.read(document.Content[0], 0)
	}
	if err != nil {
		m.raiseError("yaml.decode", "invalid", err.Error())
	}
	L.Push(value)
	return 1
}

// parseYAML parses a text that is one document. The parser does not know the escape \/, which YAML 1.2 has: another one is put
// in its place, which becomes \/ again where it is none.
func parseYAML(text string) (*yaml.Node, error) {
	const slash = `\u002f`
	document, err := parseOne(text)
	if err == nil || !strings.Contains(text, `\/`) || strings.Contains(text, slash) {
		return document, err
	}
	var other strings.Builder
	for at := 0; at < len(text); at++ {
		switch {
		case text[at] != '\\' || at+1 == len(text):
			other.WriteByte(text[at])
			continue
		case text[at+1] == '/':
			other.WriteString(slash)
		default:
			other.WriteString(text[at : at+2])
		}
		at++
	}
	again, wrong := parseOne(other.String())
	if wrong != nil {
		return nil, err
	}
	replaceUnquoted(again, slash, `\/`)
	return again, nil
}

// replaceUnquoted replaces a text in all scalars that are not between double quotes.
func replaceUnquoted(n *yaml.Node, old, text string) {
	if n.Kind == yaml.ScalarNode && n.Style&yaml.DoubleQuotedStyle == 0 {
		n.Value = strings.ReplaceAll(n.Value, old, text)
	}
	for _, inner := range n.Content {
		replaceUnquoted(inner, old, text)
	}
}

func parseOne(document string) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(strings.NewReader(document))
	var node, more yaml.Node
	if err := decoder.Decode(&node); err == io.EOF {
		return nil, err
	} else if err != nil {
		return nil, fault.YAML(err, []byte(document))
	}
	switch err := decoder.Decode(&more); err {
	case nil:
		return nil, fmt.Errorf("line %d: a second document begins, and there may be one", more.Line)
	case io.EOF:
		return &node, nil
	default:
		return nil, fault.YAML(err, []byte(document))
	}
}

// yamlReader makes Lua values of a parsed document. Every node that it visits counts, also each time that an alias
// leads there: a few lines of aliases can stand for billions of values.
type yamlReader struct {
	m    *machine
	left int
	// core: the document says that it is YAML 1.2, so it is read by the core schema, to which yes and 1_000 are text and 010
	// is ten.
	core bool
}

// directives returns a document with comments in the place of its directives, but for %TAG: the parser knows no version but
// 1.1, and what is reserved is ignored.
func (r *yamlReader) directives(text string) (string, error) {
	if !utf8.ValidString(text) {
		return "", fmt.Errorf("the text is not UTF-8")
	}
	out := []byte(strings.TrimPrefix(text, "\ufeff"))
	version, any := "", false
	for at, line := 0, 1; at < len(out); line++ {
		end := len(out)
		if n := bytes.IndexByte(out[at:], '\n'); n >= 0 {
			end = at + n + 1
		}
		words := strings.Fields(string(out[at:end]))
		switch {
		case out[at] == '%':
			any = true
			if words[0] == "%YAML" {
				if len(words) < 2 || !yamlVersion().MatchString(words[1]) || version != "" {
					return "", fmt.Errorf("line %d: one %%YAML with a version 1.1 or 1.2 may stand there", line)
				}
				version = words[1]
			}
			if words[0] != "%TAG" {
				out[at] = '#'
			}
		case len(words) > 0 && words[0][0] != '#':
			if any && words[0] != "---" {
				return "", fmt.Errorf("line %d: --- is missing behind the directives", line)
			}
			r.core = version != "" && version != "1.0" && version != "1.1"
			return string(out), nil
		}
		at = end
	}
	return string(out), nil
}

// yamlVersion matches the versions of YAML, and those to come that are no others to a parser.
var yamlVersion = lazyregexp.New(`^1\.[0-9]+$`)

func (r *yamlReader) read(n *yaml.Node, depth int) (glua.LValue, error) {
	if r.left--; r.left < 0 {
		return nil, fmt.Errorf("line %d: more than %d values", n.Line, framing.MaxFromRunner)
	}
	if depth > framing.MaxNesting {
		return nil, fmt.Errorf("line %d: nested deeper than %d", n.Line, framing.MaxNesting)
	}
	tag := n.ShortTag()
	switch {
	case n.Kind == yaml.AliasNode:
		return r.read(n.Alias, depth+1)
	case n.Kind == yaml.ScalarNode:
		return r.scalar(n)
	case n.Kind == yaml.SequenceNode && (tag == "!!seq" || tag == "!"):
		return r.sequence(n, depth)
	case n.Kind == yaml.MappingNode && (tag == "!!map" || tag == "!"):
		return r.mapping(n, depth)
	}
	return nil, fmt.Errorf("line %d: the type %s is not known", n.Line, tag)
}

func (r *yamlReader) sequence(n *yaml.Node, depth int) (glua.LValue, error) {
	t := r.m.L.NewTable()
	for i, element := range n.Content {
		value, err := r.read(element, depth+1)
		if err != nil {
			return nil, err
		}
		t.RawSetInt(i+1, value)
		r.keep(t, glua.LNumber(i+1), element, value)
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
		r.keep(t, glua.LString(key.Value), n.Content[i+1], value)
		if r.plain(key) && (key.ShortTag() != "!!str" || ambiguous(key.Value)) {
			r.m.plainYAML(t).keys[key.Value] = true
		}
	}
	return t, nil
}

// plainYAML is what of a table stood in a document without quotes and is not what yaml.encode would write: to some readers
// it may not be text, or not the same number. As long as a script does not change it, it is written as it was.
type plainYAML struct {
	keys   map[string]bool
	values map[glua.LValue]plainScalar // by the key of the table
}

// plainScalar is the value that Text was read as.
type plainScalar struct {
	text  string
	value glua.LValue
}

func (m *machine) plainYAML(t *glua.LTable) *plainYAML {
	p := m.plainYAMLOf[t]
	if p == nil {
		p = &plainYAML{keys: map[string]bool{}, values: map[glua.LValue]plainScalar{}}
		m.plainYAMLOf[t] = p
	}
	return p
}

// plain reports whether a node is a word without quotes and tag, which means something else to a reader of YAML 1.1.
func (r *yamlReader) plain(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Style == 0 && !r.core
}

// keep notes a value that was written in another way than yaml.encode has.
func (r *yamlReader) keep(t *glua.LTable, key glua.LValue, n *yaml.Node, value glua.LValue) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if !r.plain(n) || n.Value == "" {
		return
	}
	own := ""
	switch v := value.(type) {
	case glua.LString:
		if n.ShortTag() != "!!timestamp" && !ambiguous(n.Value) {
			return
		}
	case glua.LNumber:
		own = yamlNumber(float64(v))
	case glua.LBool:
		own = strconv.FormatBool(bool(v))
	default:
		own = "null"
	}
	if n.Value != own {
		r.m.plainYAML(t).values[key] = plainScalar{n.Value, value}
	}
}

var (
	// yaml11Boolean matches what is a boolean to readers of YAML 1.1, and text to those of YAML 1.2. Of y and n the former
	// do not agree.
	yaml11Boolean = lazyregexp.New(`^(yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)$`)
	// yaml11Other matches what may be no text to readers of YAML 1.1: y, n, and numbers to the base 60.
	yaml11Other = lazyregexp.New(`^([yYnN]|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)$`)
	// yamlNumeral matches numbers, also those that the parser takes for text because they are too large.
	yamlNumeral = lazyregexp.New(`^[-+]?(0x[0-9A-Fa-f_]+|0o[0-7_]+|0b[01_]+|` +
		`(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?)$`)
	// yamlOctal matches what is octal to readers of YAML 1.1.
	yamlOctal = lazyregexp.New(`^[-+]?0[0-7_]+$`)
	// coreNumber matches numbers of the core schema of YAML 1.2 that are decimal, coreOther the others.
	coreNumber = lazyregexp.New(`^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`)
	coreOther  = lazyregexp.New(`^(0o[0-7]+|0x[0-9a-fA-F]+|[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN)$`)
)

// ambiguous reports whether a word without quotes is text to some readers alone.
func ambiguous(word string) bool {
	return yaml11Boolean().MatchString(word) || yaml11Other().MatchString(word)
}

// scalar reads numbers and booleans as readers of YAML 1.1 do, which most files of a guest are for, so that 0644 is octal,
// and also the forms that are new in YAML 1.2, such as 0o644. A time stays text, as do y, n and numbers to the base 60.
func (r *yamlReader) scalar(n *yaml.Node) (glua.LValue, error) {
	inexact := func() (glua.LValue, error) {
		return nil, fmt.Errorf("line %d: a number in Lua cannot be %s exactly; make it text, with quotes", n.Line, n.Value)
	}
	decimal := func(text string) (glua.LValue, error) {
		f, err := exactNumber(text)
		if err != nil {
			return inexact()
		}
		return glua.LNumber(f), nil
	}
	if number := n.ShortTag() == "!!int" || n.ShortTag() == "!!float"; r.core && n.Style == 0 && number {
		switch {
		case coreNumber().MatchString(n.Value):
			return decimal(n.Value)
		case !coreOther().MatchString(n.Value):
			return glua.LString(n.Value), nil
		}
	}
	switch n.ShortTag() {
	case "!!null":
		return r.m.null, nil
	case "!!bool":
		switch strings.ToLower(n.Value) {
		case "true", "yes", "on", "y":
			return glua.LTrue, nil
		case "false", "no", "off", "n":
			return glua.LFalse, nil
		}
		return nil, fmt.Errorf("line %d: %s is no boolean", n.Line, n.Value)
	case "!!int":
		var i int64
		if err := n.Decode(&i); err != nil || i > 1<<53 || i < -1<<53 {
			return inexact()
		}
		return glua.LNumber(i), nil
	case "!!float":
		text := strings.ReplaceAll(n.Value, "_", "")
		switch strings.ToLower(strings.TrimLeft(text, "+-")) {
		case ".inf":
			if text[0] == '-' {
				return glua.LNumber(math.Inf(-1)), nil
			}
			return glua.LNumber(math.Inf(1)), nil
		case ".nan":
			return glua.LNumber(math.NaN()), nil
		}
		if n.Style == 0 && yamlOctal().MatchString(n.Value) { // of 64 bits it is too large for the parser
			return inexact()
		}
		return decimal(text)
	case "!!binary":
		var s string
		if err := n.Decode(&s); err != nil {
			return nil, fmt.Errorf("line %d: this is not base64", n.Line)
		}
		return glua.LString(s), nil
	case "!!str", "!!timestamp":
		switch plain := n.Style == 0; {
		case plain && !r.core && yaml11Boolean().MatchString(n.Value):
			return glua.LBool(strings.ContainsAny(n.Value[:2], "yY") || strings.EqualFold(n.Value, "on")), nil
		case plain && n.ShortTag() == "!!str" && yamlNumeral().MatchString(n.Value) && (!r.core || coreNumber().MatchString(n.Value)):
			return inexact()
		}
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
		if n, err = m.yamlNode(value, L.CheckAny(1)); err == nil {
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

// yamlNode keeps the order of fields. An empty table is a mapping unless json.array made it. v is what lua is outside of Lua.
func (m *machine) yamlNode(v *pb.LuaValue, lua glua.LValue) (*yaml.Node, error) {
	plain := func(tag, text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: text} }
	switch v := v.GetKind().(type) {
	case *pb.LuaValue_Boolean:
		return plain("!!bool", strconv.FormatBool(v.Boolean)), nil
	case *pb.LuaValue_Number:
		if math.IsNaN(v.Number) || math.IsInf(v.Number, 0) {
			return nil, fmt.Errorf(": %v is no number for a file", v.Number)
		}
		return plain("", yamlNumber(v.Number)), nil // without a tag, which would be written for some numbers
	case *pb.LuaValue_String_:
		return yamlText(v.String_)
	case *pb.LuaValue_Table:
		table, _ := lua.(*glua.LTable)
		return m.yamlTable(v.Table, m.backing(table))
	}
	return plain("!!null", "null"), nil
}

// yamlNumber is numberText with a point in front of an exponent: without one it is text to readers of YAML 1.1.
func yamlNumber(f float64) string {
	text := numberText(f)
	if mantissa, exponent, ok := strings.Cut(text, "e"); ok && !strings.Contains(mantissa, ".") {
		return mantissa + ".0e" + exponent
	}
	return text
}

func (m *machine) yamlTable(t *pb.LuaTable, lua *glua.LTable) (*yaml.Node, error) {
	was := m.plainYAMLOf[lua]
	if was == nil {
		was = &plainYAML{}
	}
	node := func(key glua.LValue, v *pb.LuaValue) (*yaml.Node, error) {
		value := lua.RawGet(key)
		if kept, ok := was.values[key]; ok && kept.value == value {
			return &yaml.Node{Kind: yaml.ScalarNode, Value: kept.text}, nil
		}
		return m.yamlNode(v, value)
	}
	if len(t.GetArray()) > 0 && len(t.GetFields()) > 0 {
		return nil, fmt.Errorf(": a table is a list or has names, not both (%s)", t.GetFields()[0].GetKey())
	}
	if len(t.GetArray()) > 0 || t.GetList() && len(t.GetFields()) == 0 {
		out := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for i, v := range t.GetArray() {
			n, err := node(glua.LNumber(i+1), v)
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
		if name := string(f.GetKey()); was.keys[name] {
			key = &yaml.Node{Kind: yaml.ScalarNode, Value: name}
		}
		n, err := node(glua.LString(f.GetKey()), f.GetValue())
		if err != nil {
			return nil, fmt.Errorf(".%s%w", f.GetKey(), err)
		}
		out.Content = append(out.Content, key, n)
	}
	return out, nil
}

var (
	// yamlWord matches text that every reader of YAML 1.1 and 1.2 takes for text, but for yamlAmbiguousWord.
	yamlWord = lazyregexp.New(`^[A-Za-z_/][A-Za-z0-9_./@+-]*( [A-Za-z0-9_/][A-Za-z0-9_./@+-]*)*$`)
	// yamlAmbiguousWord matches words that are a boolean or null to one of them.
	yamlAmbiguousWord = lazyregexp.New(`^(?i:y|n|yes|no|on|off|true|false|null)$`)
	// yamlLines matches text that can be written as a literal block without a change.
	yamlLines = lazyregexp.New(`^([!-~]([ -~]*[!-~])?\n)+$`)
)

// yamlText returns text as a node that is text again when it is read: quoted where it could be taken for something
// else.
func yamlText(s []byte) (*yaml.Node, error) {
	if !utf8.Valid(s) {
		return nil, fmt.Errorf(": a string is not UTF-8; base64.encode it")
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: string(s)}
	switch {
	case yamlWord().Match(s) && !yamlAmbiguousWord().Match(s):
	case yamlLines().Match(s):
		n.Style = yaml.LiteralStyle
	default:
		n.Style = yaml.DoubleQuotedStyle
	}
	return n, nil
}
