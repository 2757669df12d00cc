package main

import (
	"os"
	"path/filepath"
	"strings"
)

const (
	// rootDir is the root of a guest that runs.
	rootDir = "/"
	// defaultControl is the control socket of the agent that uses config.StateDir. It lies in memory.
	defaultControl = "/run/quantix-kvm/agent.sock"
)

// scriptDirs are where scripts lie that can be run by name, the administrator's own first, then the image's.
var scriptDirs = []string{"/etc/quantix-kvm/scripts.d", "/usr/share/quantix-kvm/scripts"}

// inMemory reports whether what is below a directory is gone after a restart of the guest.
func inMemory(dir string) bool { return strings.HasPrefix(dir, "/run/") }

// controlBeside returns the control socket of an agent with another state directory.
func controlBeside(stateDir string) string { return filepath.Join(stateDir, "agent.sock") }

// controlDevice returns the device of a control socket, whose directory is there then.
func controlDevice(path string) (string, error) {
	return "unix:" + path, os.MkdirAll(filepath.Dir(path), 0o700)
}
