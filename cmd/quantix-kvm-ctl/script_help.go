package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// helpScripts makes "run NAME --help" show what the script of the guest declares, instead of the help of run.
func (a *app) helpScripts(run *cobra.Command) {
	run.SetHelpFunc(func(c *cobra.Command, args []string) {
		name := c.Flags().Arg(0)
		if name != "" && name != "-" && !isFile(name) {
			err := a.helpScript(c.Context(), name)
			if err == nil {
				return
			}
			a.note("help on the script %s: %v", name, err)
		}
		c.Root().HelpFunc()(c, args)
	})
}

func (a *app) helpScript(ctx context.Context, name string) error {
	return a.with(ctx, requestTimeout, func(s *session) error {
		scripts, err := s.Scripts(s.ctx)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(scripts, func(info *pb.ScriptInfo) bool { return info.Name == name })
		if at < 0 {
			return fault.Wrapf(fs.ErrNotExist, "the guest has no such script")
		}
		return a.printScript(scripts[at])
	})
}

// printScript prints what a script declares.
func (a *app) printScript(info *pb.ScriptInfo) error {
	head := strings.TrimSpace(info.Name + " " + info.Version)
	if info.Description != "" {
		head += ": " + info.Description
	}
	lines := []string{head, "", "Usage:", "  quantix-kvm-ctl run " + info.Name + usageOf(info.ParamsSchema)}
	if info.Error != "" {
		lines = append(lines, "", "It cannot run: "+info.Error)
	}
	effect := "It changes the guest."
	if info.Readonly {
		effect = "It changes nothing."
	}
	if len(info.Needs) > 0 {
		effect += " It needs " + strings.Join(info.Needs, ", ") + "."
	}
	lines = append(lines, "", effect, "From "+info.SourcePath)
	for _, line := range lines {
		fmt.Fprintln(a.stdout, printable(line))
	}
	rows := paramRows(info.ParamsSchema)
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintln(a.stdout, "\nParameters:")
	return table(a.stdout, rows)
}

// paramNames returns the names of the parameters, the required ones first, each part sorted.
func paramNames(schema *structpb.Struct) []string {
	var names []string
	for name := range schema.GetFields() {
		names = append(names, name)
	}
	sort.Slice(names, func(i, j int) bool {
		if one, other := flag(schema, names[i], "required"), flag(schema, names[j], "required"); one != other {
			return one
		}
		return names[i] < names[j]
	})
	return names
}

func paramField(schema *structpb.Struct, name, field string) *structpb.Value {
	return schema.GetFields()[name].GetStructValue().GetFields()[field]
}

func flag(schema *structpb.Struct, name, field string) bool {
	return paramField(schema, name, field).GetBoolValue()
}

// usageOf returns the flags of the required parameters.
func usageOf(schema *structpb.Struct) (text string) {
	for _, name := range paramNames(schema) {
		switch {
		case !flag(schema, name, "required"):
		case flag(schema, name, "secret"):
			text += " --secret " + name
		default:
			text += " -p " + name + "=…"
		}
	}
	return text
}

func paramRows(schema *structpb.Struct) (rows [][]string) {
	for _, name := range paramNames(schema) {
		var notes []string
		if text := paramField(schema, name, "description").GetStringValue(); text != "" {
			notes = append(notes, text)
		}
		for _, word := range []string{"required", "secret"} {
			if flag(schema, name, word) {
				notes = append(notes, word)
			}
		}
		for _, field := range []struct{ name, text string }{
			{"default", "default %s"}, {"enum", "one of %s"}, {"min", "at least %s"}, {"max", "at most %s"}, {"pattern", "matches %s"},
		} {
			if value := paramField(schema, name, field.name); value != nil {
				notes = append(notes, fmt.Sprintf(field.text, plainJSON(value)))
			}
		}
		rows = append(rows, []string{"  " + name, paramField(schema, name, "type").GetStringValue(), strings.Join(notes, "; ")})
	}
	return rows
}

// plainJSON returns a value as -p takes it.
func plainJSON(value *structpb.Value) string {
	text, err := json.Marshal(value.AsInterface())
	if err != nil {
		return value.String()
	}
	return string(text)
}
