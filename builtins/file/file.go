// Package file is the room for files and directories of the guest.
//
//	host    file_write  file_read  list_directory  …  ──┐              ┌── fsys.Root: where, safely
//	                                                    ├──► one core ─┼── Call.Before, Take, Undo: what it was
//	script  file.write  file.read  file.list       …  ──┘              └── Call.Report: what became of it
//
// A file is replaced whole or not at all: written beside its place, made durable, renamed; what a transaction appends
// to a large one is written in place, and cut off again. What another user may have put there first is not taken over.
// Every function of a script that changes something looks first, and where the guest is as it is wanted it touches
// nothing and says so. The host's rows do what the contract says, and refuse where it would do harm. Owners are looked
// up in the files of the root.
//
// Not here: who may touch which path, how a change is undone, and Lua.
package file

import (
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/crc32c"
)

// Config is what the room needs to know. The zero value works.
type Config struct {
	// UploadIdle is how long an upload may wait for its next chunk before it is dropped; 0: 5 minutes.
	UploadIdle time.Duration
	// MaxUploads is how many uploads may be under way at once; 0: 64.
	MaxUploads int
	// Leftovers is a file of the agent's own in which the room notes where uploads were staged, so that the next process of the
	// agent removes what a killed one left. Empty: what was left is removed by the next upload into the same directory.
	Leftovers string
	// EnterLeftovers begins a write of that file; an error says that it cannot be written now. Nil: it always can.
	EnterLeftovers func() (leave func(), err error)
}

// Room holds the operations on files. It is safe for concurrent use.
type Room struct {
	guest   *guest.Guest
	edit    *edit.Editor
	uploads *uploads
	readers readers
	held    held
	left    leftovers
	sweeps  sync.WaitGroup
	crc     crc32c.Sum
}

// New makes the room for the files of a guest, which stay the caller's. The caller closes the room before them.
func New(g *guest.Guest, config Config) *Room {
	if config.UploadIdle == 0 {
		config.UploadIdle = 5 * time.Minute
	}
	if config.MaxUploads == 0 {
		config.MaxUploads = 64
	}
	r := &Room{
		guest: g, crc: crc32c.New(), left: leftovers{file: config.Leftovers, enter: config.EnterLeftovers},
		uploads: &uploads{root: g.Files, open: map[uploadKey]*upload{}, idle: config.UploadIdle, max: config.MaxUploads},
	}
	r.edit = &edit.Editor{Guest: g, Guard: g.Guard}
	return r
}

// close drops all uploads under way, and what they wrote so far. Later chunks are refused.
func (r *Room) close() error {
	r.held.close()
	r.sweeps.Wait()
	return r.uploads.close()
}

// begins removes what uploads of earlier processes left. It does not wait.
func (r *Room) begins() {
	if dirs := r.left.take(); len(dirs) > 0 {
		r.sweeps.Go(func() { r.sweepLeftovers(dirs) })
	}
}

// change is an object of the file system on its way from what it is to what it shall be.
type change struct {
	*edit.Change
	swept bool // what dead agents left in the directory was looked for already
}

func (r *Room) begin(call *builtins.Call, op, path string, how edit.Options) (*change, error) {
	c, err := r.edit.Begin(call, op, path, how)
	if err != nil {
		return nil, err
	}
	return &change{Change: c}, nil
}
