package main

import (
	"os"
	"runtime"
)

// frugal keeps the agent's own code on one processor, unless the administrator's GOMAXPROCS says otherwise. The agent has
// nothing to compute, and is there for a guest that has: with several processors each chunk of a transfer wakes another
// thread on another one, which spins before it sleeps. One is twice as fast in an emulated guest and a third faster
// elsewhere. What waits for the kernel has threads of its own either way, and what computes is interrupted after 10 ms.
func frugal() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
}
