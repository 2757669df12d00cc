package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

// startTime is how long the agent is given to have started, before it forgets what only that needed.
const startTime = 3 * time.Second

// frugal keeps the agent's own code on one processor, unless the administrator's GOMAXPROCS says otherwise. The agent has
// nothing to compute, and is there for a guest that has: with several processors each chunk of a transfer wakes another
// thread on another one, which spins before it sleeps. One is twice as fast in an emulated guest and a third faster
// elsewhere. What waits for the kernel has threads of its own either way, and what computes is interrupted after 10 ms.
//
// Two thirds of what the kernel counts for the agent are pages of the program that its start touched: they go once it has
// started.
func frugal() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	time.AfterFunc(startTime, func() {
		debug.FreeOSMemory()
		forgetStart()
	})
}
