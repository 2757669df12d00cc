package lua

import (
	"fmt"
	"math"
	"net/netip"
	"sort"
	"strings"

	glua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/pm"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/suggest"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua/internal/numeral"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// paramSpec is one declared parameter.
type paramSpec struct {
	name         string
	typ          string
	required     bool
	secret       bool
	defaultValue glua.LValue
	enum         []glua.LValue
	pattern      string
	min, max     *float64 // of a number its value, of a text its bytes, of a list its length
	described    *pb.LuaValue
}

var specFields = []string{"type", "required", "default", "enum", "pattern", "min", "max", "secret", "description"}

// typeNames are the types of parameters, in the order of the guide.
var typeNames = []string{
	"string", "integer", "number", "boolean", "list", "map", "enum", "path", "ip", "cidr", "hostname",
}

// hostname matches a name of RFC 1123: labels of letters, digits and inner hyphens.
var hostname = lazyregexp.New(`^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

// readSpecs reads the params of a declaration; faults go to r.
func (m *machine) readSpecs(r *tableReader) []*paramSpec {
	v := r.t.RawGetString("params")
	if v == glua.LNil {
		return nil
	}
	t, ok := v.(*glua.LTable)
	if !ok {
		r.fault("params must be a table of names")
		return nil
	}
	var specs []*paramSpec
	for k, v := t.Next(glua.LNil); k != glua.LNil; k, v = t.Next(k) {
		name, ok := k.(glua.LString)
		table, isTable := v.(*glua.LTable)
		if !ok || !isTable {
			r.fault("params must be name = {type = …}, and %s is not", k.String())
			continue
		}
		specs = append(specs, m.readSpec(r, string(name), table))
	}
	sort.Slice(specs, func(i, j int) bool { return specs[i].name < specs[j].name })
	return specs
}

func (m *machine) readSpec(outer *tableReader, name string, t *glua.LTable) *paramSpec {
	r := &tableReader{t: t}
	r.rejectUnknown("field", specFields)
	s := &paramSpec{
		name: name, typ: r.text("type"), required: r.boolean("required"), secret: r.boolean("secret"),
		pattern: r.text("pattern"), defaultValue: t.RawGetString("default"),
	}
	r.text("description")
	s.min, s.max = r.number("min"), r.number("max")
	if s.typ == "" {
		r.fault("type is missing")
	} else if !contains(typeNames, s.typ) {
		r.fault("type %s is not one of %s", s.typ, strings.Join(typeNames, ", "))
	}
	if list, ok := t.RawGetString("enum").(*glua.LTable); ok {
		for i := 1; i <= listLength(list); i++ {
			s.enum = append(s.enum, list.RawGetInt(i))
		}
	} else if t.RawGetString("enum") != glua.LNil {
		r.fault("enum must be a list of values")
	}
	m.checkSpec(r, s)
	for _, f := range r.faults {
		outer.fault("params.%s: %s", name, f)
	}
	return s
}

// checkSpec checks the fields of a parameter against one another.
func (m *machine) checkSpec(r *tableReader, s *paramSpec) {
	if s.typ == "enum" && len(s.enum) == 0 {
		r.fault("an enum needs enum = {…}")
	}
	if s.pattern != "" {
		if _, err := pm.Find(s.pattern, nil, 0, 1); err != nil {
			r.fault("pattern: %v", err)
		}
	}
	switch {
	case s.min == nil && s.max == nil:
	case s.typ == "boolean" || s.typ == "map":
		r.fault("a %s has no min or max", s.typ)
	case s.min != nil && s.max != nil && *s.min > *s.max:
		r.fault("min is more than max")
	}
	if s.secret && s.defaultValue != glua.LNil {
		r.fault("a secret has no default")
	}
	if s.defaultValue != glua.LNil && r.faults == nil {
		if s.required {
			r.fault("a default is never used where a value is required")
		}
		if wrong := m.valueFault(s, s.defaultValue); wrong != "" {
			r.fault("default %s", wrong)
		}
	}
	described, err := m.toValue(r.t)
	if err != nil {
		r.fault("%s", strings.TrimPrefix(err.Error(), ": "))
	}
	s.described = described
}

// checkParams returns the table for the run function: the parameters given, and defaults. The error has all faults at
// once.
func (m *machine) checkParams(specs []*paramSpec) (*glua.LTable, error) {
	given, err := m.fromTable(m.start.GetParams())
	if err != nil {
		return nil, &failure{kind: "params", message: err.Error(), at: position{script: m.start.GetName()}}
	}
	r := &tableReader{t: given}
	out := m.L.NewTable()
	var names []string
	for _, s := range specs {
		if !s.secret {
			names = append(names, s.name)
		}
		value := m.paramValue(s, given)
		if value == glua.LNil {
			if s.required {
				r.fault("%s is required", s.name)
			}
			continue
		}
		if wrong := m.valueFault(s, value); wrong != "" {
			r.fault("%s %s", s.name, wrong)
		}
		out.RawSetString(s.name, value)
	}
	r.rejectUnknown("parameter", append(names, m.misplacedSecrets(r, specs)...))
	if r.faults != nil {
		return nil, &failure{kind: "params", message: strings.Join(r.faults, "; "), at: m.declaredAt}
	}
	return m.readOnly("a parameter", out), nil
}

// misplacedSecrets returns the secrets that came as parameters, where they would be logged.
func (m *machine) misplacedSecrets(r *tableReader, specs []*paramSpec) (names []string) {
	for _, s := range specs {
		if s.secret && r.t.RawGetString(s.name) != glua.LNil {
			r.fault("%s is secret, and belongs into secrets", s.name)
			names = append(names, s.name)
		}
	}
	return names
}

// paramValue returns the value of a parameter, for a secret one from secrets, or its default.
func (m *machine) paramValue(s *paramSpec, params *glua.LTable) glua.LValue {
	value := params.RawGetString(s.name)
	if s.secret {
		value = glua.LNil
		if text, ok := m.start.GetSecrets()[s.name]; ok {
			value = glua.LString(text)
		}
	}
	if value == glua.LNil {
		return s.defaultValue
	}
	return value
}

// valueFault returns what is wrong with a value; empty: nothing. It does not show the value, which may be secret.
func (m *machine) valueFault(s *paramSpec, value glua.LValue) string {
	if text := typeFault(s.typ, value); text != "" {
		return text
	}
	if len(s.enum) > 0 && !containsValue(s.enum, value) {
		var all []string
		for _, v := range s.enum {
			all = append(all, m.rawTostring(v))
		}
		text := "must be one of " + strings.Join(all, ", ")
		if other := suggest.Closest(m.rawTostring(value), all); other != "" && !s.secret {
			text += fmt.Sprintf(" (did you mean %s?)", other)
		}
		return text
	}
	if text := s.rangeFault(value); text != "" {
		return text
	}
	if s.pattern != "" {
		matches, err := pm.Find(s.pattern, []byte(m.rawTostring(value)), 0, 1)
		if err != nil || len(matches) == 0 {
			return "must match " + s.pattern
		}
	}
	return ""
}

// rangeFault returns how a value is less than min or more than max; empty: it is neither.
func (s *paramSpec) rangeFault(value glua.LValue) string {
	var size float64
	unit := ""
	switch v := value.(type) {
	case glua.LNumber:
		size = float64(v)
	case glua.LString:
		size, unit = float64(len(v)), " bytes"
	case *glua.LTable:
		size, unit = float64(listLength(v)), " elements"
	}
	if unit != "" {
		unit = " long, in" + unit
	}
	switch {
	case s.min != nil && size < *s.min:
		return "must be at least " + numeral.Text(*s.min) + unit
	case s.max != nil && size > *s.max:
		return "must be at most " + numeral.Text(*s.max) + unit
	}
	return ""
}

func containsValue(list []glua.LValue, value glua.LValue) bool {
	for _, v := range list {
		if v == value {
			return true
		}
	}
	return false
}

// typeFault returns how a value is not of a type; empty: it is.
func typeFault(typ string, value glua.LValue) string {
	number, isNumber := value.(glua.LNumber)
	text, isText := value.(glua.LString)
	table, isTable := value.(*glua.LTable)
	s := string(text)
	var ok bool
	name := typ
	switch typ {
	case "string":
		ok = isText
	case "integer":
		ok = isNumber && float64(number) == math.Trunc(float64(number)) && math.Abs(float64(number)) <= 1<<53
	case "number":
		ok = isNumber
	case "boolean":
		_, ok = value.(glua.LBool)
	case "list":
		ok = isTable && countNames(table) == 0
	case "map":
		ok = isTable && table.Len() == 0
	case "enum":
		ok = isText || isNumber
	case "path":
		ok, name = isText && isAbsolute(s) && !strings.Contains(s, "\x00"), "absolute path without '..'"
	case "ip":
		_, err := netip.ParseAddr(s)
		ok, name = isText && err == nil, "IP address"
	case "cidr":
		_, err := netip.ParsePrefix(s)
		ok, name = isText && err == nil, "IP address with prefix length, such as 192.0.2.7/24"
	case "hostname":
		ok, name = isText && len(s) <= 253 && hostname().MatchString(s), "host name"
	}
	switch {
	case ok:
		return ""
	case strings.IndexByte("aeiouAEIOU", name[0]) >= 0:
		return "must be an " + name
	default:
		return "must be a " + name
	}
}

// countNames returns how many keys are not list indexes.
func countNames(t *glua.LTable) int {
	n := 0
	t.ForEach(func(k, _ glua.LValue) {
		if _, index := k.(glua.LNumber); !index {
			n++
		}
	})
	return n
}
