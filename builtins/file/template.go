package file

import (
	"context"
	"sort"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (r *Room) template(ctx context.Context, call *builtins.Call, in *pb.TemplateArgs) (*pb.Changed, error) {
	text, err := expand(in.Text, in.Vars)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	attr, err := r.attr(in.Mode, in.Owner, in.Group)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.put(ctx, call, wanted{
		op: "file.template", path: in.Path, attr: attr, content: []byte(text), parents: in.Parents, backup: in.Backup,
	})
}

// expand puts the value of each {{name}} in its place; blanks inside the braces do not count. Two literal braces are
// written {{"{{"}}; a pair of closing ones that belongs to nothing stays. A name without a value, a value without use and
// a brace without an end are errors that name the line: each is most likely a slip.
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
		name := strings.TrimSpace(inside)
		if !ok || strings.ContainsAny(inside, "{}\n") {
			return "", fault.Invalid(`line %d: {{ has no }} behind its name; write {{"{{"}} for two braces`, line)
		}
		value, ok := vars[name]
		if !ok {
			return "", fault.Invalid("line %d: there is no value for {{%s}}; there are %s", line, name, list(vars))
		}
		used[name] = true
		b.WriteString(value)
		rest = tail
	}
	for _, name := range sorted(vars) {
		if !used[name] {
			return "", fault.Invalid("the value %s is not used: there is no {{%s}} in the text", name, name)
		}
	}
	return b.String(), nil
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
