package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/cmd/internal/scripttest"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func newCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "new NAME",
		Short: "begin a script, with a test beside it",
		Long: `new writes NAME.lua, a declared script that does one thing, and NAME_test.lua, its test: both run as they are. NAME may have
a directory before it. A file that is there already is left alone.`,
		Example: "  quantix-kvm-agent script new site && quantix-kvm-agent script test site.lua",
		Args:    cobra.ExactArgs(1),
		RunE:    func(c *cobra.Command, args []string) error { return beginScript(c.OutOrStdout(), args[0]) },
	}
}

var nameOfScript = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`) // as declarations have it

const firstScript = `-- What it is for, in a line or two.

return script {
  name = "NAME",
  version = "0.1",
  description = "say where the site listens",
  params = {
    port = {type = "integer", required = true, min = 1, max = 65535, description = "where it listens"},
  },
  needs = {"file:/etc/NAME.conf"},

  run = function(p)
    local changed = file.write("/etc/NAME.conf", "port " .. p.port .. "\n", {mode = "0644"})
    if changed then
      log("the port is", p.port)
    end
    return {changed = changed}
  end,
}
`

const firstTest = `-- quantix-kvm-agent script test NAME.lua

return {
  writes_the_port = function()
    local run = test.run({port = 8443})
    assert(run.result.changed)
    assert(file.read("/etc/NAME.conf") == "port 8443\n")
  end,

  refuses_what_is_no_port = function()
    test.run({port = 0}, {fails = "port must be at least 1"})
  end,

  survives_a_crash = function()
    file.write("/etc/NAME.conf", "port 80\n")
    test.crash({port = 8443})
  end,
}
`

// beginScript writes a script and its test.
func beginScript(out io.Writer, path string) error {
	path = strings.TrimSuffix(path, ".lua")
	name := filepath.Base(path)
	if !nameOfScript.MatchString(name) {
		return fmt.Errorf("%q is no name of a script: 1 to 64 of a-z, 0-9, '.', '_', '-', and a letter or digit first", name)
	}
	files := []string{path + ".lua", path + "_test.lua"}
	for _, file := range files {
		if _, err := os.Lstat(file); err == nil {
			return &fs.PathError{Op: "create", Path: file, Err: fs.ErrExist}
		}
	}
	for i, text := range []string{firstScript, firstTest} {
		f, err := os.OpenFile(files[i], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		_, err = f.WriteString(strings.ReplaceAll(text, "NAME", name))
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		fmt.Fprintln(out, files[i])
	}
	return nil
}

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
			return describeScripts(c.Context(), c.OutOrStdout(), args, modules)
		},
	}
	moduleFlag(c, &modules)
	return c
}

// describeScripts prints one section for each script.
func describeScripts(ctx context.Context, out io.Writer, files, named []string) error {
	modules, err := readModules(named)
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
		page(out, outcome.Declaration, params.AsMap(), headOf(string(source)))
	}
	return nil
}

// headOf is the comment at the head of a script.
func headOf(source string) (text string) {
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

// page prints what a script declares.
func page(out io.Writer, d *pb.ScriptDeclaration, params map[string]any, head string) {
	fmt.Fprintf(out, "# %s\n", strings.TrimSpace(d.Name+" "+d.Version))
	if d.Description != "" {
		fmt.Fprintf(out, "\n%s\n", sentence(d.Description))
	}
	if head != "" {
		fmt.Fprintf(out, "\n%s", head)
	}
	call := "quantix-kvm-ctl run " + d.Name
	for _, field := range d.Params.GetFields() { // in their order, which a map has not
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
		row(out, name, params[name].(map[string]any))
	}
	fmt.Fprintf(out, "\n%s\n", promise(d))
}

// row prints one parameter.
func row(out io.Writer, name string, p map[string]any) {
	var words []string
	add := func(text string) { words = append(words, sentence(text)) }
	if text, _ := p["description"].(string); text != "" {
		add(text)
	}
	if list, ok := p["enum"].([]any); ok {
		var all []string
		for _, v := range list {
			all = append(all, inJSON(v))
		}
		add("one of " + strings.Join(all, ", "))
	}
	for _, bound := range []struct{ key, words string }{{"min", "at least "}, {"max", "at most "}, {"pattern", "matches "}} {
		if v, ok := p[bound.key]; ok {
			add(bound.words + inJSON(v))
		}
	}
	if p["secret"] == true {
		add("secret")
	}
	def := ""
	if v, ok := p["default"]; ok {
		if def = inJSON(v); def == "{}" && p["type"] == "list" { // Lua has one kind of empty table
			def = "[]"
		}
	} else if p["required"] == true {
		def = "required"
	}
	fmt.Fprintf(out, "| `%s` | %v | %s | %s |\n", name, p["type"], cell(def), cell(strings.Join(words, " ")))
}

// promise says what a script needs, and what it does not do.
func promise(d *pb.ScriptDeclaration) string {
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

func sentence(text string) string {
	return strings.ToUpper(text[:1]) + strings.TrimSuffix(text[1:], ".") + "."
}

func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(text)
}

// inJSON writes a value as -p takes it.
func inJSON(v any) string {
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
