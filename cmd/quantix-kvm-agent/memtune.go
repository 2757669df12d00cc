package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

// startTime is how long after its start the agent drops what only the start needed.
const startTime = 3 * time.Second

// memoryTarget is how much memory the agent may take before what is not used any more is collected at once, in bytes. Without
// it the collector lets a request of some MiB leave several times as much. It is above agent.requestMemory, which is what hosts
// can make the agent hold for requests, and what the agent has at rest, by little.
const memoryTarget = 32 << 20

// tuneMemory keeps the agent small and its own code on one processor, unless the administrator's GOMAXPROCS says otherwise.
// The agent has nothing to compute; the guest has. With several processors each chunk of a transfer wakes another thread on
// another processor, which spins before it sleeps: with one a transfer is twice as fast in an emulated guest, and a third
// faster elsewhere. System calls that block have threads of their own either way, and code that computes is interrupted after
// 10 ms.
//
// Two thirds of the memory that the kernel counts for the agent are pages of the program that only its start touched, or a
// request of a kind that does not come again soon. They are dropped once it has started, and whenever memory is trimmed.
func tuneMemory() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryTarget)
	}
	time.AfterFunc(startTime, trimMemory)
}

// useProcessors gives the agent's own code a second processor while many commands are run at once, unless the administrator's
// GOMAXPROCS says otherwise: a start of a program keeps the one that it runs on until the program has begun, and fifty at
// once took twice as long.
func useProcessors(many bool) {
	switch {
	case os.Getenv("GOMAXPROCS") != "":
	case many:
		runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	default:
		runtime.GOMAXPROCS(1)
	}
}

// trimMemory returns to the system what the agent does not use any more: of its heap, and pages of the program.
func trimMemory() {
	debug.FreeOSMemory()
	dropStartPages()
}
