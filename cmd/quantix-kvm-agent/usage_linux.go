package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// usage returns this process's resident size in bytes and its processor time in milliseconds; 0 where it cannot be read.
func usage() (resident, cpu uint64) {
	if text, err := os.ReadFile("/proc/self/statm"); err == nil {
		var size, pages uint64
		if n, _ := fmt.Sscan(string(text), &size, &pages); n == 2 {
			resident = pages * uint64(os.Getpagesize())
		}
	}
	var used unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &used) == nil {
		cpu = uint64((used.Utime.Nano() + used.Stime.Nano()) / 1e6)
	}
	return resident, cpu
}
