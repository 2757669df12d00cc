package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
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
