package file

import (
	"errors"
	"os"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

const (
	// maxHeld is how many files are held open for the next chunk of a read.
	maxHeld = 8
	// heldFor is how long a file is held at least after its last chunk, and at most twice that: an open file keeps its
	// file system from being unmounted.
	heldFor = 500 * time.Millisecond
)

var errNotHeld = errors.New("no file is held open for this read")

// held keeps the files of reads under way open between two chunks, since finding a file safely costs more than reading a
// chunk of it. Whoever goes on with one looks first whether the path still leads to it. The zero value is ready.
type held struct {
	mu     sync.Mutex
	files  map[readerKey]*heldFile
	timer  *time.Timer // runs while there are files
	closed bool
}

type heldFile struct {
	file *os.File
	meta fsys.Meta // as it was when it was opened
	used bool      // since the timer came by
}

// get gives a file that is held; nil: none. Another goroutine may close it at any time: a read then gives os.ErrClosed.
func (h *held) get(key readerKey) (*os.File, fsys.Meta) {
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.files[key]
	if one == nil {
		return nil, fsys.Meta{}
	}
	one.used = true
	return one.file, one.meta
}

// keep takes a file over, or closes it where there is no room.
func (h *held) keep(key readerKey, file *os.File, meta fsys.Meta) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.files[key]
	if h.closed || old == nil && len(h.files) >= maxHeld {
		_ = file.Close()
		return
	}
	if old != nil {
		_ = old.file.Close()
	}
	if h.files == nil {
		h.files = map[readerKey]*heldFile{}
	}
	h.files[key] = &heldFile{file: file, meta: meta, used: true}
	if h.timer == nil {
		h.timer = time.AfterFunc(heldFor, h.sweep)
	}
}

func (h *held) drop(key readerKey) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forget(key)
}

// forget closes a file. A read that is under way is not disturbed: the descriptor stays until it is done.
func (h *held) forget(key readerKey) {
	if one := h.files[key]; one != nil {
		_ = one.file.Close()
		delete(h.files, key)
	}
}

// sweep closes what was not used since it came by last.
func (h *held) sweep() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, one := range h.files {
		if !one.used {
			h.forget(key)
		}
		one.used = false
	}
	if len(h.files) == 0 {
		h.timer = nil
		return
	}
	h.timer.Reset(heldFor)
}

func (h *held) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for key := range h.files {
		h.forget(key)
	}
	if h.timer != nil {
		h.timer.Stop()
	}
}
