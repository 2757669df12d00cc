package file

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (r *Room) template(ctx context.Context, call *builtins.Call, in *pb.TemplateArgs) (*pb.Changed, error) {
	text, err := expand(in.Text, in.Vars)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	attr, err := r.attr(call, in.Mode, in.Owner, in.Group)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.put(ctx, call, edit.File{
		Op: "file.template", Path: in.Path, Attr: attr, Content: []byte(text), Parents: in.Parents, Backup: in.Backup,
	})
}

// expand puts the value of each {{name}} or {{name|filter}} in its place; blanks inside the braces do not count. Two
// literal braces are written {{"{{"}}; a pair of closing ones that belongs to nothing stays. A name without a value, a value
// without use and a brace without an end are errors that name the line: each is most likely a slip.
func expand(text string, vars map[string]string) (string, error) {
	var b strings.Builder
	used := map[string]bool{}
	rest := text
	for {
		before, after, found := strings.Cut(rest, "{{")
		b.WriteString(before)
		if !found {
			break
		}
		line := 1 + strings.Count(text[:len(text)-len(after)], "\n")
		if tail, ok := strings.CutPrefix(after, `"{{"}}`); ok {
			b.WriteString("{{")
			rest = tail
			continue
		}
		inside, tail, ok := strings.Cut(after, "}}")
		name, filter, _ := strings.Cut(inside, "|")
		name, filter = strings.TrimSpace(name), strings.TrimSpace(filter)
		if !ok || strings.ContainsAny(inside, "{}\n") {
			return "", fault.Invalid(`line %d: {{ has no }} behind its name; write {{"{{"}} for two braces`, line)
		}
		value, ok := vars[name]
		if !ok {
			return "", fault.Invalid("line %d: there is no value for {{%s}}; there are %s", line, name, list(vars))
		}
		used[name] = true
		write, known := filters[filter]
		if !known {
			return "", fault.Invalid("line %d: there is no filter %s; there are json, raw, shell, xml, yaml", line, filter)
		}
		text, err := write(value)
		if err != nil {
			return "", fault.Invalid("line %d: {{%s}}: %v", line, name, err)
		}
		b.WriteString(text)
		rest = tail
	}
	for _, name := range sorted(vars) {
		if !used[name] {
			return "", fault.Invalid("the value %s is not used: there is no {{%s}} in the text", name, name)
		}
	}
	return b.String(), nil
}

// filters write a value so that it stays one thing where it comes to stand.
var filters = map[string]func(string) (string, error){
	"":    oneLine,
	"raw": func(value string) (string, error) { return value, nil },
	"shell": func(value string) (string, error) {
		return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'", noNUL(value)
	},
	"json": quoted,
	"yaml": quoted, // a double-quoted scalar of YAML is a string of JSON
	"xml": func(value string) (string, error) {
		var b strings.Builder
		err := xml.EscapeText(&b, []byte(value))
		return b.String(), err
	},
}

// oneLine keeps a value from becoming a line of its own in a file of configuration.
func oneLine(value string) (string, error) {
	if at := strings.IndexFunc(value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f || c == '\u2028' || c == '\u2029' }); at >= 0 {
		return "", fmt.Errorf("the value has more than one line or a control character; {{name|raw}} writes it as it is")
	}
	return value, nil
}

func noNUL(value string) error {
	if strings.Contains(value, "\x00") {
		return errors.New("the value has a NUL byte, which no shell takes")
	}
	return nil
}

func quoted(value string) (string, error) {
	if !utf8.ValidString(value) {
		return "", errors.New("the value is not UTF-8")
	}
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return strings.TrimSuffix(b.String(), "\n"), err
}

func list(vars map[string]string) string {
	if len(vars) == 0 {
		return "none"
	}
	return strings.Join(sorted(vars), ", ")
}

func sorted(vars map[string]string) []string {
	var names []string
	for name := range vars {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
