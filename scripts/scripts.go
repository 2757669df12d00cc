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

// Bundled returns the scripts, each as NAME.lua at the root of the file system.
func Bundled() fs.FS {
	bundled, err := fs.Sub(files, "bundled")
	if err != nil {
		panic("bundled scripts: " + err.Error()) // cannot happen: the name is a constant
	}
	return bundled
}
