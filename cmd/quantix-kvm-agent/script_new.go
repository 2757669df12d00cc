package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/scripts"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

func newCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "new NAME",
		Short: "begin a script, with a test beside it",
		Long: `new writes NAME.lua, a declared script that does one thing, and NAME_test.lua, its test: both run as they are. NAME may have
a directory before it. A file that is there already is left alone. Beside them it writes .luarc.json and .quantix/quantix.lua for
editors with the Lua language server, and .luacheckrc for luacheck, where there are none.`,
		Example: "  quantix-kvm-agent script new site && quantix-kvm-agent script test site.lua",
		Args:    cobra.ExactArgs(1),
		RunE:    func(c *cobra.Command, args []string) error { return createScript(c.OutOrStdout(), args[0]) },
	}
}

// scriptName matches what a declaration may be called.
var scriptName = lazyregexp.New(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// scriptTemplate is a new script, with NAME for its name.
const scriptTemplate = `-- What it is for, in a line or two.

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

// testTemplate is the test of a new script.
const testTemplate = `-- quantix-kvm-agent script test NAME.lua

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

// createScript writes a script and its test, and prints their names.
func createScript(out io.Writer, path string) error {
	path = strings.TrimSuffix(path, ".lua")
	name := filepath.Base(path)
	if !scriptName().MatchString(name) {
		return fmt.Errorf("%q is no name of a script: 1 to 64 of a-z, 0-9, '.', '_', '-', and a letter or digit first", name)
	}
	files := []string{path + ".lua", path + "_test.lua"}
	for _, file := range files {
		if _, err := os.Lstat(file); err == nil {
			return &fs.PathError{Op: "create", Path: file, Err: fs.ErrExist}
		}
	}
	for i, text := range []string{scriptTemplate, testTemplate} {
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
	return writeEditorFiles(out, filepath.Dir(path))
}

// luarc is the configuration that shows the Lua language server where the definitions are.
const luarc = `{
  "runtime.version": "Lua 5.1",
  "workspace.library": [".quantix"]
}
`

// writeEditorFiles writes what editors and luacheck want to know into the directory of a new script, but for what is there
// already.
func writeEditorFiles(out io.Writer, dir string) error {
	library, err := fs.ReadFile(scripts.Stubs(), "quantix.lua")
	if err != nil {
		return err
	}
	check, err := fs.ReadFile(scripts.Stubs(), "quantix.luacheckrc")
	if err != nil {
		return err
	}
	for _, file := range []struct {
		name string
		text []byte
	}{
		{".luarc.json", []byte(luarc)}, {".luacheckrc", check}, {filepath.Join(".quantix", "quantix.lua"), library},
	} {
		path := filepath.Join(dir, file.name)
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, file.text, 0o644); err != nil {
			return err
		}
		fmt.Fprintln(out, path)
	}
	return nil
}
