package main

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

const (
	// rootDir is the root of a guest that runs.
	rootDir = `C:\`
	// defaultControl is the pipe on which the agent that uses config.StateDir is asked how it is.
	defaultControl = `\\.\pipe\quantix-kvm-agent`
)

// scriptDirs are where scripts lie that can be run by name.
var scriptDirs = []string{`\ProgramData\Quantix-KVM\scripts.d`}

// inMemory reports whether what is below a directory is gone after a restart of the guest.
func inMemory(string) bool { return false }

// controlBeside returns the pipe of an agent with another state directory.
func controlBeside(stateDir string) string {
	sum := sha256.Sum256([]byte(strings.ToLower(stateDir)))
	return defaultControl + "-" + hex.EncodeToString(sum[:4])
}

// controlDevice returns the device of a control pipe.
func controlDevice(path string) (string, error) { return "pipe:" + path, nil }
