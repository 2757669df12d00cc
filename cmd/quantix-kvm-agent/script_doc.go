package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/cmd/internal/scriptreport"
	"github.com/quantix-kvm/guest-agent/cmd/internal/scripttest"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func docCommand() *cobra.Command {
	var modules []string
	c := &cobra.Command{
		Use:   "doc FILE.lua...",
		Short: "describe scripts in Markdown, from what they declare",
		Long: `doc prints what declared scripts are for, how they are run, their parameters and what they need, as Markdown. The comment at
the head of a file comes along. Nothing of a script is run but its top level, where it may do nothing.`,
		Example: "  quantix-kvm-agent script doc scripts.d/*.lua > SCRIPTS.md",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return documentScripts(c.Context(), c.OutOrStdout(), args, modules)
		},
	}
	moduleFlag(c, &modules)
	return c
}

// documentScripts prints one section for each script.
func documentScripts(ctx context.Context, out io.Writer, files, named []string) error {
	modules, err := scriptreport.Modules(named)
	if err != nil {
		return err
	}
	pool := sandbox.New(sandbox.Config{})
	defer pool.Close()
	for i, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		outcome := look(ctx, pool, &pb.RunnerStart{
			Name: filepath.Base(file), Source: source, Describe: true, Modules: modules,
			Functions: scripttest.Functions(), Unsupported: all.Unsupported,
		})
		if e := outcome.Error; e != nil {
			return fmt.Errorf("%s: %s", place(file, e), e.Message)
		}
		if outcome.Declaration == nil {
			return fmt.Errorf("%s: it declares nothing: its last statement is not return script {…}", file)
		}
		params, err := sandbox.ToStruct(outcome.Declaration.Params)
		if err != nil {
			return fmt.Errorf("%s: params: %w", file, err)
		}
		if i > 0 {
			fmt.Fprintln(out)
		}
		writeScript(out, outcome.Declaration, params.AsMap(), headComment(string(source)))
	}
	return nil
}

// headComment returns the comment at the head of a script.
func headComment(source string) (text string) {
	for line := range strings.Lines(source) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#!") && text == "" {
			continue
		}
		comment, ok := strings.CutPrefix(line, "--")
		if !ok || strings.HasPrefix(comment, "[[") || strings.HasPrefix(comment, "-@") {
			break
		}
		text += strings.TrimPrefix(comment, " ") + "\n"
	}
	return text
}

// writeScript prints what a script declares.
func writeScript(out io.Writer, d *pb.ScriptDeclaration, params map[string]any, head string) {
	fmt.Fprintf(out, "# %s\n", strings.TrimSpace(d.Name+" "+d.Version))
	if d.Description != "" {
		fmt.Fprintf(out, "\n%s\n", sentence(d.Description))
	}
	if head != "" {
		fmt.Fprintf(out, "\n%s", head)
	}
	call := "quantix-kvm-ctl run " + d.Name
	for _, field := range d.Params.GetFields() { // a map has no order
		name := string(field.Key)
		switch p := params[name].(map[string]any); {
		case p["required"] != true:
		case p["secret"] == true:
			call += " --secret " + name
		default:
			call += " -p " + name + "=…"
		}
	}
	fmt.Fprintf(out, "\n    %s\n", call)
	if len(params) > 0 {
		fmt.Fprint(out, "\n| parameter | type | default | |\n|---|---|---|---|\n")
	}
	for _, field := range d.Params.GetFields() {
		name := string(field.Key)
		writeParam(out, name, params[name].(map[string]any))
	}
	fmt.Fprintf(out, "\n%s\n", guarantees(d))
}

// writeParam prints one parameter, as a row of a table.
func writeParam(out io.Writer, name string, p map[string]any) {
	var words []string
	add := func(text string) { words = append(words, sentence(text)) }
	if text, _ := p["description"].(string); text != "" {
		add(text)
	}
	if list, ok := p["enum"].([]any); ok {
		var all []string
		for _, v := range list {
			all = append(all, jsonText(v))
		}
		add("one of " + strings.Join(all, ", "))
	}
	for _, bound := range []struct{ key, words string }{{"min", "at least "}, {"max", "at most "}, {"pattern", "matches "}} {
		if v, ok := p[bound.key]; ok {
			add(bound.words + jsonText(v))
		}
	}
	if p["secret"] == true {
		add("secret")
	}
	def := ""
	if v, ok := p["default"]; ok {
		if def = jsonText(v); def == "{}" && p["type"] == "list" { // Lua has one kind of empty table
			def = "[]"
		}
	} else if p["required"] == true {
		def = "required"
	}
	fmt.Fprintf(out, "| `%s` | %v | %s | %s |\n", name, p["type"], escapeCell(def), escapeCell(strings.Join(words, " ")))
}

// guarantees returns what a script needs, and what it does not do.
func guarantees(d *pb.ScriptDeclaration) string {
	var words []string
	switch {
	case d.Readonly:
		words = append(words, "It changes nothing.")
	default:
		words = append(words, "It happens whole or not at all.")
	}
	if len(d.Needs) == 0 {
		words = append(words, "It may call everything.")
	} else {
		words = append(words, "It needs `"+strings.Join(d.Needs, "`, `")+"`.")
	}
	if d.Timeout > 0 {
		words = append(words, fmt.Sprintf("It ends within %v.", time.Duration(d.Timeout*float64(time.Second))))
	}
	return strings.Join(words, " ")
}

// sentence returns text with a capital and a full stop. text is not empty.
func sentence(text string) string {
	return strings.ToUpper(text[:1]) + strings.TrimSuffix(text[1:], ".") + "."
}

// escapeCell returns text as a cell of a table.
func escapeCell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(text)
}

// jsonText returns a value as -p takes it.
func jsonText(v any) string {
	value, err := structpb.NewValue(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	text, err := json.Marshal(value.AsInterface())
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}
