package config

// Where the agent looks and keeps things unless it is configured otherwise. Each but DefaultFile lies below the root that the
// agent acts on.
const (
	// DefaultFile is the configuration file.
	DefaultFile = `C:\ProgramData\Quantix-KVM\agent.yaml`
	// StateDir is where the agent keeps what must survive a crash.
	StateDir = `C:\ProgramData\Quantix-KVM\state`

	defaultPreFreezeDir = `C:\ProgramData\Quantix-KVM\pre-freeze.d`
	defaultPostThawDir  = `C:\ProgramData\Quantix-KVM\post-thaw.d`
)
