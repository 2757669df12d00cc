package lua

import (
	"runtime"
	"runtime/metrics"
	"strings"

	glua "github.com/yuin/gopher-lua"
)

// largeFrom is the size in bytes from which on memory is asked for before it is taken. What is smaller the sampler sees
// in time.
const largeFrom = 256 << 10

// reserve ends the script where so many bytes more would not fit into its heap: before they are taken, so that the error
// has a line.
func (m *machine) reserve(size int) {
	limit := m.stop.memory
	if limit == 0 || size >= 0 && size < largeFrom {
		return
	}
	share := limit / 8 * totalShare
	if size >= 0 && uint64(size) < share {
		if heapObjects()+uint64(size) <= share {
			return
		}
		runtime.GC() // some of it may be dead
		if heapObjects()+uint64(size) <= share {
			return
		}
	}
	m.stop.now("memory", usedUp)
	m.goOn()
}

const usedUp = "the script used up its memory"

func heapObjects() uint64 {
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(heap)
	return heap[0].Value.Uint64()
}

// interrupted is the error of a script that was stopped. Functions of ours that take long ask for it.
func (m *machine) interrupted() error { return m.stop.Err() }

// goOn ends the call where the script was stopped.
func (m *machine) goOn() {
	if err := m.interrupted(); err != nil {
		m.L.RaiseError("%s", err.Error())
	}
}

// every is how many turns of a loop of ours pass between two calls of goOn.
const every = 1 << 14

// builder makes a string within the script's memory.
type builder struct {
	strings.Builder
	m *machine
}

// grow makes room for n bytes more.
func (b *builder) grow(n int) {
	if size := 2*b.Cap() + n; b.Cap()-b.Len() < n {
		b.m.reserve(size)
		b.Grow(n)
	}
}

func (b *builder) add(s string) {
	b.grow(len(s))
	b.WriteString(s)
}

func (b *builder) value() glua.LString { return glua.LString(b.String()) }
