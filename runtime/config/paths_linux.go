package config

// Where the agent looks and keeps things unless it is configured otherwise. Each but DefaultFile lies below the root that the
// agent acts on.
const (
	// DefaultFile is the configuration file.
	DefaultFile = "/etc/quantix-kvm/agent.yaml"
	// StateDir is where the agent keeps what must survive a crash.
	StateDir = "/var/lib/quantix-kvm"

	defaultPreFreezeDir = "/etc/quantix-kvm/pre-freeze.d"
	defaultPostThawDir  = "/etc/quantix-kvm/post-thaw.d"
)
