package lua

import (
	"fmt"
	"math"
	"sort"
	"strings"
	"time"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/suggest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// script is the Lua function that a declaration calls. It only keeps the table.
func (m *machine) script(L *glua.LState) int {
	if !m.declaring || m.declared != nil {
		L.RaiseError("return script {…} must be the last statement of a script")
	}
	m.declared = L.CheckTable(1)
	m.declaredAt = m.currentPosition()
	L.SetTop(1)
	return 1
}

// runDeclared reads the script's declaration, and then calls its run function with checked parameters.
func (m *machine) runDeclared(main *glua.LFunction) (*pb.RunnerDone, error) {
	m.declaring = true
	value, err := m.callProtected(main)
	if err != nil {
		return nil, err
	}
	m.declaring = false
	if m.declared == nil || value != glua.LValue(m.declared) {
		return nil, m.declarationFault([]string{"something else than script {…} was returned"})
	}
	declaration, specs, err := m.readDeclaration(m.declared)
	if err != nil {
		return nil, err
	}
	if m.start.GetDescribe() {
		return &pb.RunnerDone{Declaration: declaration}, nil
	}
	params, err := m.checkParams(specs)
	if err != nil {
		return nil, err
	}
	return m.callMain(m.declared.RawGetString("run").(*glua.LFunction), params)
}

// declarationFault returns an error with all faults of a declaration.
func (m *machine) declarationFault(faults []string) error {
	at := m.declaredAt
	if at.script == "" {
		at.script = m.start.GetName()
	}
	return &failure{kind: "syntax", message: "declaration: " + strings.Join(faults, "; "), at: at}
}

var (
	declarationFields = []string{
		"name", "version", "description", "params", "needs", "timeout", "confirm", "readonly", "os", "run",
	}
	systems    = []string{"linux", "windows"}
	scriptName = lazyregexp.New(`^[a-z0-9][a-z0-9._-]{0,63}$`)
)

// tableReader reads fields of a table and collects faults.
type tableReader struct {
	t      *glua.LTable
	faults []string
}

func (r *tableReader) fault(format string, args ...any) {
	r.faults = append(r.faults, fmt.Sprintf(format, args...))
}

// rejectUnknown reports fields that are not known, sorted, with the name that was probably meant.
func (r *tableReader) rejectUnknown(what string, known []string) {
	var unknown []string
	for k, _ := r.t.Next(glua.LNil); k != glua.LNil; k, _ = r.t.Next(k) {
		name := k.String()
		if _, ok := k.(glua.LString); ok && contains(known, name) {
			continue
		}
		text := fmt.Sprintf("unknown %s %s", what, name)
		if other := suggest.Closest(name, known); other != "" {
			text += fmt.Sprintf(", did you mean %s?", other)
		}
		unknown = append(unknown, text)
	}
	sort.Strings(unknown)
	r.faults = append(r.faults, unknown...)
}

func contains(list []string, word string) bool {
	for _, w := range list {
		if w == word {
			return true
		}
	}
	return false
}

func (r *tableReader) text(name string) string {
	switch v := r.t.RawGetString(name).(type) {
	case *glua.LNilType:
	case glua.LString:
		return string(v)
	default:
		r.fault("%s must be a string", name)
	}
	return ""
}

func (r *tableReader) boolean(name string) bool {
	switch v := r.t.RawGetString(name).(type) {
	case *glua.LNilType:
	case glua.LBool:
		return bool(v)
	default:
		r.fault("%s must be true or false", name)
	}
	return false
}

// seconds reads a number of seconds, or text such as "90s" or "5m"; nil where the field is missing.
func (r *tableReader) seconds(name string) *float64 {
	var s float64
	switch v := r.t.RawGetString(name).(type) {
	case *glua.LNilType:
		return nil
	case glua.LNumber:
		s = float64(v)
	case glua.LString:
		d, err := time.ParseDuration(string(v))
		if err != nil {
			r.fault("%s %q is not a time such as 90 or \"90s\"", name, string(v))
			return nil
		}
		s = d.Seconds()
	default:
		r.fault("%s must be a number of seconds", name)
		return nil
	}
	if !(s >= 0) || math.IsInf(s, 0) {
		r.fault("%s must not be negative", name)
		return nil
	}
	return &s
}

// number reads a number; nil where the field is missing.
func (r *tableReader) number(name string) *float64 {
	switch v := r.t.RawGetString(name).(type) {
	case *glua.LNilType:
	case glua.LNumber:
		if n := float64(v); !math.IsNaN(n) {
			return &n
		}
		r.fault("%s must be a number", name)
	default:
		r.fault("%s must be a number", name)
	}
	return nil
}

func (r *tableReader) strings(name string) []string {
	v := r.t.RawGetString(name)
	if v == glua.LNil {
		return nil
	}
	t, ok := v.(*glua.LTable)
	if !ok {
		r.fault("%s must be a list of strings", name)
		return nil
	}
	var out []string
	for k, v := t.Next(glua.LNil); k != glua.LNil; k, v = t.Next(k) {
		_, index := k.(glua.LNumber)
		s, text := v.(glua.LString)
		if !index || !text {
			r.fault("%s must be a list of strings", name)
			return nil
		}
		out = append(out, toValidText(string(s)))
	}
	return out
}

// readDeclaration checks a declaration and returns it with its parameters. The error has all faults at once.
func (m *machine) readDeclaration(t *glua.LTable) (*pb.ScriptDeclaration, []*paramSpec, error) {
	r := &tableReader{t: t}
	r.rejectUnknown("field", declarationFields)
	d := &pb.ScriptDeclaration{
		Name: toValidText(r.text("name")), Version: toValidText(r.text("version")), Description: toValidText(r.text("description")),
		Needs: r.strings("needs"), Readonly: r.boolean("readonly"), Confirm: r.seconds("confirm"), Os: r.strings("os"),
	}
	for _, name := range d.Os {
		if !contains(systems, name) {
			r.fault("os has %q, and knows %s", name, strings.Join(systems, " and "))
		}
	}
	if list, ok := t.RawGetString("os").(*glua.LTable); ok && list.Len() == 0 {
		r.fault("os is empty, so the script would run nowhere")
	}
	if list, ok := t.RawGetString("needs").(*glua.LTable); ok && list.Len() == 0 {
		r.fault("needs is empty, which would limit nothing: leave it out, or say what the script needs")
	}
	if timeout := r.seconds("timeout"); timeout != nil {
		d.Timeout = *timeout
	}
	if !scriptName().MatchString(d.Name) {
		r.fault("name must be 1 to 64 of a-z, 0-9, '.', '_', '-', and begin with a letter or digit")
	}
	if _, ok := t.RawGetString("run").(*glua.LFunction); !ok {
		r.fault("run must be a function")
	}
	specs := m.readSpecs(r)
	if r.faults != nil {
		return nil, nil, m.declarationFault(r.faults)
	}
	d.Params = &pb.LuaTable{}
	for _, s := range specs {
		d.Params.Fields = append(d.Params.Fields, &pb.LuaField{Key: []byte(s.name), Value: s.described})
	}
	return d, specs, nil
}
