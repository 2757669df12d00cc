// Package scripts holds the Lua scripts that are part of the agent. Each is run by the name that it declares, which is
// also the name of its file.
//
//	bundled/motd.lua ──► Bundled ──► the agent's list of scripts, next to those of the image
//
// Not here: any Go beyond embedding.
package scripts

import (
	"embed"
	"io/fs"
)

//go:embed bundled/*.lua
var files embed.FS

//go:embed hooks
var hooks embed.FS

// Hooks returns the freeze hooks that every agent runs: shell scripts that do nothing where their server does not
// run.
func Hooks() fs.FS {
	dir, err := fs.Sub(hooks, "hooks")
	if err != nil {
		panic("bundled hooks: " + err.Error()) // cannot happen: the name is a constant
	}
	return dir
}

//go:embed stubs/quantix.lua stubs/quantix.luacheckrc
var stubs embed.FS

// Stubs returns what editors and luacheck want to know of the functions of scripts: quantix.lua for the Lua language server,
// and quantix.luacheckrc.
func Stubs() fs.FS {
	dir, err := fs.Sub(stubs, "stubs")
	if err != nil {
		panic("stubs: " + err.Error()) // cannot happen: the name is a constant
	}
	return dir
}

// Bundled returns the scripts, each as NAME.lua at the root of the file system.
func Bundled() fs.FS {
	bundled, err := fs.Sub(files, "bundled")
	if err != nil {
		panic("bundled scripts: " + err.Error()) // cannot happen: the name is a constant
	}
	return bundled
}
