package reference

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// generated heads every file, after the beginning of a comment.
const generated = "Generated from the rows of the rooms and wire/pb by go generate ./builtins/all. Not to be edited."

// room is what comes before the dot.
func room(name string) string { head, _, _ := strings.Cut(name, "."); return head }

func rooms(functions []function) []string {
	var rooms []string
	for _, f := range functions {
		if !slices.Contains(rooms, room(f.name)) {
			rooms = append(rooms, room(f.name))
		}
	}
	return rooms
}

// call writes how a function is called.
func (f function) call() string {
	var args []string
	for _, a := range f.args {
		if a.optional {
			args = append(args, "["+a.name+"]")
		} else {
			args = append(args, a.name)
		}
	}
	if len(f.options) > 0 {
		args = append(args, "[options]")
	}
	return f.name + "(" + strings.Join(args, ", ") + ")"
}

func (d *description) markdown() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "<!-- %s -->\n# What scripts can call\n\n", generated)
	b.WriteString("Options go into a table behind the other arguments, by their names. What is in brackets may be left out. A call that\n" +
		"fails raises an error table (`op`, `code`, `object`, `message`, `hint`), and is taken back before. Whatever changes the guest\n" +
		"and gives `changed` gives true only if it changed something.\n\n")
	b.WriteString("| global | |\n|---|---|\n")
	for _, w := range luaGlobals {
		if w.text != "" {
			name := w.name
			if w.call != "" {
				name = w.call
			}
			fmt.Fprintf(&b, "| `%s` | %s |\n", name, cell(w.text))
		}
	}
	for _, name := range rooms(d.functions) {
		fmt.Fprintf(&b, "\n## %s\n", name)
		for _, f := range d.functions {
			if room(f.name) == name {
				f.markdown(&b)
			}
		}
	}
	b.WriteString("\n## test\n\nOnly the test of a script has these, a file NAME_test.lua beside NAME.lua. It calls the functions of `file`, too: they act on the\n" +
		"scratch tree of its case.\n")
	for _, f := range d.tests {
		f.markdown(&b)
	}
	b.WriteString("\n## Tables\n")
	for _, c := range d.classes {
		fmt.Fprintf(&b, "\n### %s\n\n%s\n\n", c.name, sentence(ofFunction(c.text)))
		rows(&b, "field", c.fields)
	}
	if len(d.unsupported) == 0 {
		return []byte(b.String())
	}
	fmt.Fprintf(&b, "\n## Not there\n\nThese raise an error of kind `unsupported`: %s.\n", "`"+strings.Join(d.unsupported, "`, `")+"`")
	return []byte(b.String())
}

func (f function) markdown(b *strings.Builder) {
	fmt.Fprintf(b, "\n### %s\n\n%s", f.call(), sentence(f.summary))
	if f.result.name != "" {
		fmt.Fprintf(b, " Gives `%s` (%s).", f.result.name, cell(f.result.typ))
	}
	for _, mark := range f.notes {
		b.WriteString(" " + sentence(mark))
	}
	if f.detail != "" {
		b.WriteString("\n\n" + f.detail)
	}
	b.WriteString("\n")
	if len(f.args) > 0 {
		b.WriteString("\n")
		rows(b, "argument", f.args)
	}
	if len(f.options) > 0 {
		b.WriteString("\n")
		rows(b, "option", f.options)
	}
}

func rows(b *strings.Builder, head string, fields []field) {
	fmt.Fprintf(b, "| %s | type | |\n|---|---|---|\n", head)
	for _, f := range fields {
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", f.name, cell(f.typ), cell(f.text))
	}
}

// cell keeps a text in its cell of a table.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// ofFunction returns the comment of a message as the description of a table: where it begins with the name of a function, the
// table is what that gives.
func ofFunction(text string) string {
	if name := functionName.FindString(text); name != "" {
		return "what `" + name + "` gives" + text[len(name):]
	}
	return text
}

var functionName = regexp.MustCompile(`^[a-z]+\.[a-z_]+\b`)

// sentence makes one of a line.
func sentence(text string) string {
	if text == "" {
		return ""
	}
	text = strings.ToUpper(text[:1]) + text[1:]
	return strings.TrimSuffix(text, ".") + "."
}

// stubs are definitions for the Lua language server.
func (d *description) stubs() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "---@meta\n-- %s\n-- luacheck: ignore\n", generated)
	for _, c := range d.classes {
		fmt.Fprintf(&b, "\n---%s\n---@class quantix.%s\n", c.text, c.name)
		d.fields(&b, c.fields)
	}
	all := slices.Concat(d.functions, d.tests)
	for _, name := range rooms(all) {
		fmt.Fprintf(&b, "\n---@class (exact) quantix.room.%s\n%s = {}\n", name, name)
		for _, f := range all {
			if room(f.name) == name {
				d.stub(&b, f)
			}
		}
	}
	b.WriteString(runnerStubs)
	return []byte(b.String())
}

func (d *description) stub(b *strings.Builder, f function) {
	options := f.name + ".options"
	if len(f.options) > 0 {
		fmt.Fprintf(b, "\n---@class (exact) %s\n", options)
		d.fields(b, f.options)
	}
	fmt.Fprintf(b, "\n---%s\n", strings.TrimSpace(sentence(f.summary)+" "+f.detail))
	for _, mark := range f.notes {
		fmt.Fprintf(b, "---%s\n", sentence(mark))
	}
	var names []string
	param := func(name, typ, text string, optional bool) {
		names = append(names, luaName(name))
		fmt.Fprintln(b, strings.TrimRight(fmt.Sprintf("---@param %s%s %s %s", luaName(name), mark(optional), typ, text), " "))
	}
	for _, a := range f.args {
		param(a.name, d.typ(a.typ), a.text, a.optional)
	}
	if len(f.options) > 0 {
		param("options", options, "", true)
	}
	if f.result.name != "" {
		fmt.Fprintf(b, "---@return %s %s\n", d.typ(f.result.typ), f.result.name)
	}
	fmt.Fprintf(b, "function %s(%s) end\n", f.name, strings.Join(names, ", "))
}

func (d *description) fields(b *strings.Builder, fields []field) {
	for _, f := range fields {
		fmt.Fprintln(b, strings.TrimRight(fmt.Sprintf("---@field %s%s %s %s", f.name, mark(f.optional), d.typ(f.typ), f.text), " "))
	}
}

func mark(optional bool) string {
	if optional {
		return "?"
	}
	return ""
}

// typ returns the tables of messages a name that no script has.
func (d *description) typ(typ string) string {
	for _, c := range d.classes {
		if strings.TrimSuffix(typ, "[]") == c.name {
			return "quantix." + typ
		}
	}
	return typ
}

// luaName is a name that Lua takes for a parameter.
func luaName(name string) string {
	if slices.Contains([]string{"end", "function", "local", "repeat", "until", "then", "in", "not", "and", "or", "nil"}, name) {
		return name + "_"
	}
	return name
}

// runnerStubs are those of what the runner adds to the language.
const runnerStubs = `
---What the script was given.
---@type table<string, any>
params = {}

---The secrets that were given; they are never logged.
---@type table<string, string>
secrets = {}

---@class (exact) quantix.Param
---@field type "string"|"integer"|"number"|"boolean"|"list"|"map"|"enum"|"path"|"ip"|"cidr"|"hostname"
---@field required? boolean
---@field default? any
---@field enum? any[]
---@field pattern? string
---@field min? number Of a number its value, of a text its bytes, of a list its length.
---@field max? number
---@field secret? boolean
---@field description? string

---@class (exact) quantix.Declaration
---@field name string
---@field version? string
---@field description? string
---@field params? table<string, quantix.Param>
---@field needs? string[]
---@field timeout? number|string
---@field confirm? number|string
---@field readonly? boolean
---@field os? ("linux"|"windows")[]
---@field run fun(params: table<string, any>): any

---Declares a script, as its last statement.
---@param declaration quantix.Declaration
---@return quantix.Declaration
function script(declaration) end

---@class quantix.Log
---@overload fun(...: any)
log = {}
---@param ... any
function log.debug(...) end
---@param ... any
function log.info(...) end
---@param ... any
function log.warn(...) end
---@param ... any
function log.error(...) end

---How far the script is, from 0 to 1, or nil; and what it does.
---@param fraction number|nil
---@param step? string
function progress(fraction, step) end

---1 to 4096 random bytes, fit for keys.
---@param bytes integer
---@return string
function random(bytes) end

json = {null = {}}
---In one line, or with 1 to 8 blanks for each level.
---@param value any
---@param options? {indent: integer}
---@return string
function json.encode(value, options) end
---@param text string
---@return any
function json.decode(text) end
---Marks a list, which an empty table does not show by itself.
---@param list? table
---@return table
function json.array(list) end

yaml = {}
---@param value any
---@return string
function yaml.encode(value) end
---@param text string
---@return any
function yaml.decode(text) end

base64 = {}
---@param bytes string
---@return string
function base64.encode(bytes) end
---@param text string
---@return string
function base64.decode(text) end
`

// luacheck is a standard of its own: scripts have less than Lua 5.1, and more.
func (d *description) luacheck() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "-- %s\n-- luacheck --config quantix.luacheckrc FILE.lua\nmax_line_length = 128\nstd = \"quantix\"\nstds.quantix = {\n  read_globals = {\n", generated)
	for _, w := range luaGlobals {
		global(&b, w.name, w.fields)
	}
	for _, name := range rooms(d.functions) {
		global(&b, name, fieldsOf(name, d.functions))
	}
	b.WriteString("  },\n}\nstds.quantix_test = {\n  read_globals = {\n")
	global(&b, "test", fieldsOf("test", d.tests))
	b.WriteString("  },\n}\nfiles = {[\"/**/*_test.lua\"] = {std = \"+quantix_test\"}}\n")
	return []byte(b.String())
}

func fieldsOf(name string, functions []function) (fields []string) {
	for _, f := range functions {
		if room(f.name) == name {
			fields = append(fields, strings.TrimPrefix(f.name, name+"."))
		}
	}
	return fields
}

func global(b *strings.Builder, name string, fields []string) {
	switch {
	case name == "params" || name == "secrets" || name == "_G":
		fmt.Fprintf(b, "    %s = {other_fields = true},\n", name)
	case len(fields) == 0:
		fmt.Fprintf(b, "    %q,\n", name)
	default:
		fmt.Fprintf(b, "    %s = {fields = {%q", name, fields[0])
		for _, f := range fields[1:] {
			fmt.Fprintf(b, ", %q", f)
		}
		b.WriteString("}},\n")
	}
}
