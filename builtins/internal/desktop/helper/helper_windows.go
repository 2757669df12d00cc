package helper

import (
	"os"
	"runtime/debug"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/ipc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
)

// Memory is the most that a helper uses, in bytes: the pixels of one image, and content that is kept, read and sent at the same
// time, beside what Go keeps for itself. The agent has its job object hold it to that.
const Memory = 384 << 20

// openChannel returns the channel to the agent.
func openChannel() (*os.File, error) {
	debug.SetMemoryLimit(Memory - 4*ipc.MaxContent)
	return proc.OpenPeerChannel()
}
