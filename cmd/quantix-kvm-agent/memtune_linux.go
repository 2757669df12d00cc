package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropStartPages returns the pages of the program file to the system, as far as nothing can have been written to them: what
// is needed again comes from the page cache. Where that fails nothing is lost.
func dropStartPages() {
	for _, pages := range programPages() {
		_ = unix.Madvise(pages, unix.MADV_DONTNEED)
	}
}

// programPages are the mappings of the program file that nothing is written to, which stay as they are.
var programPages = sync.OnceValue(func() (list [][]byte) {
	own, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uintptr
		var rights string
		_, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights)
		if err == nil && strings.HasSuffix(lines.Text(), " "+own) && (rights == "r-xp" || rights == "r--p") {
			list = append(list, unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(nil), from)), to-from))
		}
	}
	return list
})

// unlockTime is how long after a thaw memory is unlocked: snapshots of several disks come one after the other, and to unlock
// takes as long as a thaw.
const unlockTime = 2 * time.Second

// memoryLock keeps what the agent has in memory there, while file systems are frozen: a page of its own that has to be read
// again, or one of another program that has to be written for it, would wait for a disk. Pages that it has not used yet are not
// read for that. Where it fails, for want of rights, nothing is lost but that. The zero value is ready.
type memoryLock struct {
	system sync.Mutex // held over the system calls, so that the last one is what was wanted last

	mu     sync.Mutex
	want   bool
	locked bool
	later  *time.Timer // unlocks
}

// set returns at once: the lock is there a moment later, while the first freeze still writes to its disk. Neither who waits for
// the freeze nor who waits for the thaw waits for it.
func (l *memoryLock) set(locked bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.want = locked
	if l.later != nil {
		l.later.Stop()
	}
	if locked {
		go l.apply()
	} else {
		l.later = time.AfterFunc(unlockTime, l.apply)
	}
}

// apply locks or unlocks, as it is wanted now.
func (l *memoryLock) apply() {
	l.system.Lock()
	defer l.system.Unlock()
	l.mu.Lock()
	want, has := l.want, l.locked
	l.locked = want
	l.mu.Unlock()
	switch {
	case want && !has:
		const onFault = 4 // MCL_ONFAULT of include/uapi/asm-generic/mman.h
		_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | onFault)
	case !want && has:
		_ = unix.Munlockall()
	}
}
