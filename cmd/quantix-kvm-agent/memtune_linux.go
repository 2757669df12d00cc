package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropStartPages returns the pages of the program file to the system, as far as nothing can have been written to them: what
// is needed again comes from the page cache. Where that fails nothing is lost.
func dropStartPages() {
	own, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uintptr
		var rights string
		_, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights)
		if err != nil || !strings.HasSuffix(lines.Text(), " "+own) || rights != "r-xp" && rights != "r--p" {
			continue
		}
		_ = unix.Madvise(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(nil), from)), to-from), unix.MADV_DONTNEED)
	}
}

// memoryLock keeps what the agent has in memory there, while file systems are frozen: a page of its own that has to be read again, or
// one of another program that has to be written for it, would wait for a disk. Pages that it has not used yet are not read for that.
// Where it fails, for want of rights, nothing is lost but that.
type memoryLock struct {
	mu   sync.Mutex
	want bool
}

// set locks before it returns, and unlocks some time later: who waits for a thaw does not wait for that.
func (l *memoryLock) set(locked bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.want = locked; locked {
		const onFault = 4 // MCL_ONFAULT of include/uapi/asm-generic/mman.h
		_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | onFault)
		return
	}
	go l.unlock()
}

func (l *memoryLock) unlock() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.want {
		_ = unix.Munlockall()
	}
}
