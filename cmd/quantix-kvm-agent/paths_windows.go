package main

const (
	// rootDir is the root of a guest that runs.
	rootDir = `C:\`
	// defaultControl is the control socket of the agent that uses config.StateDir.
	defaultControl = `C:\ProgramData\Quantix-KVM\agent.sock`
)

// scriptDirs are where scripts lie that can be run by name.
var scriptDirs = []string{`\ProgramData\Quantix-KVM\scripts.d`}

// inMemory reports whether what is below a directory is gone after a restart of the guest.
func inMemory(string) bool { return false }
