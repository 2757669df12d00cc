package lua

import (
	"runtime"
	"runtime/metrics"
	"strings"
	"time"

	glua "github.com/yuin/gopher-lua"
)

// reserveThreshold is the size in bytes from which on memory is checked before it is allocated. watchHeap sees smaller
// allocations in time.
const reserveThreshold = 256 << 10

// reserve stops the script where size more bytes would not fit into its heap. That is before they are allocated, so
// that the error has a line.
func (m *machine) reserve(size int) {
	limit := m.stopper.memory
	if limit == 0 || size >= 0 && size < reserveThreshold {
		return
	}
	share := limit / 8 * maxTotalEighths
	if size >= 0 && uint64(size) < share {
		if heapObjectBytes()+uint64(size) <= share {
			return
		}
		runtime.GC() // some of it may be garbage
		if heapObjectBytes()+uint64(size) <= share {
			return
		}
	}
	m.stopper.stop("memory", memoryExceeded)
	m.checkStopped()
}

const memoryExceeded = "the script used up its memory"

func heapObjectBytes() uint64 {
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(heap)
	return heap[0].Value.Uint64()
}

// stopError returns the error of a script that was stopped; nil: it was not. Library functions that take long call it.
func (m *machine) stopError() error { return m.stopper.Err() }

// checkStopped ends the call where the script was stopped.
func (m *machine) checkStopped() {
	if err := m.stopError(); err != nil {
		m.L.RaiseError("%s", err.Error())
	}
}

// checkInterval is how many iterations of a library function pass between two calls of checkStopped.
const checkInterval = 1 << 14

// builder builds a string within the script's memory limit.
type builder struct {
	strings.Builder
	m *machine
}

// grow makes room for n more bytes.
func (b *builder) grow(n int) {
	if size := 2*b.Cap() + n; b.Cap()-b.Len() < n {
		b.m.reserve(size)
		b.Grow(n)
	}
}

func (b *builder) append(s string) {
	b.grow(len(s))
	b.WriteString(s)
}

func (b *builder) value() glua.LString { return glua.LString(b.String()) }

// maxLiveEighths and maxTotalEighths are the shares of the heap limit, in eighths, at which a script is stopped: of
// live objects, and of all objects. The collector works against 7/8, so beyond that it cannot keep up.
const maxLiveEighths, maxTotalEighths = 6, 7

// sampleInterval is how often the heap is measured. A script can allocate 100 MB in that time, which the limit of the
// address space catches.
const sampleInterval = 5 * time.Millisecond

// watchHeap stops the script when the heap comes near its limit. It returns then, or ends with the process.
func watchHeap(stop *stopper, limit uint64) {
	heap := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	for range time.Tick(sampleInterval) {
		metrics.Read(heap)
		live, total := heap[0].Value.Uint64(), heap[1].Value.Uint64()
		if live <= limit/8*maxLiveEighths && total > limit/8*maxTotalEighths {
			runtime.GC() // some of it may be garbage
			metrics.Read(heap)
			live, total = heap[0].Value.Uint64(), heap[1].Value.Uint64()
		}
		if live > limit/8*maxLiveEighths || total > limit/8*maxTotalEighths {
			stop.stop("memory", memoryExceeded)
			return
		}
	}
}
