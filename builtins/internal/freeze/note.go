package freeze

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
)

// noted is what the note holds.
type noted struct {
	// Commands are mount points that commands left frozen.
	Commands []string `json:"commands,omitempty"`
	Holds    []Hold   `json:"holds,omitempty"`
}

// note is the file in which an agent notes what is frozen, for the one that follows where it is killed. While something is
// noted the agent has it locked, so that another one that is started by mistake leaves it alone.
type note struct {
	path string // empty: there is none
	file *os.File
}

// write replaces the content. If it fails the timers still thaw, unless the agent is killed.
func (n *note) write(content noted) {
	empty := len(content.Commands) == 0 && len(content.Holds) == 0
	switch {
	case n.path == "" || empty && n.file == nil:
		return
	case empty:
		_ = os.Remove(n.path)
		n.file.Close()
		n.file = nil
		return
	case n.file == nil:
		file, err := os.OpenFile(n.path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return
		}
		if !lockFile(file) { // another agent's
			file.Close()
			return
		}
		n.file = file
	}
	text, err := json.Marshal(content)
	if err != nil {
		return // cannot happen: it is of texts
	}
	// In this order: what is after the first value is not read, so no moment has less than the old or the new content.
	if _, err := n.file.WriteAt(append(text, '\n'), 0); err == nil {
		_ = n.file.Truncate(int64(len(text)) + 1)
	}
}

// Left is what a killed agent left frozen.
type Left struct {
	// Holds are what requests had frozen, without what was never frozen or thawed by others.
	Holds []Hold
	// Messages name each file system that was thawed, or cannot be.
	Messages []string
}

// ThawLeft thaws what a killed agent left frozen, as it noted in file, and removes that. While the agent that noted it lives it
// does nothing. It must be called before anything is written to a disk.
func ThawLeft(file string) (left Left) {
	open, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return left
	}
	defer open.Close()
	if !lockFile(open) {
		return left
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return left
	}
	var content noted
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&content); err != nil {
		left.Messages = append(left.Messages, fmt.Sprintf("%s cannot be read, and what it notes may be frozen: %v", file, err))
	}
	for _, h := range slices.Backward(content.Holds) { // the last frozen first, since it may carry the others
		for _, system := range slices.Backward(h.Systems) {
			left.thaw(system.Path, system.Point)
		}
		left.Holds = append(left.Holds, h)
	}
	for _, point := range content.Commands {
		left.thaw(point, point)
	}
	_ = os.Remove(file)
	return left
}

// thaw thaws one file system.
func (l *Left) thaw(path, point string) {
	target, err := Open(path)
	if err != nil {
		l.Messages = append(l.Messages, fmt.Sprintf("%s may be frozen since an agent was killed, and cannot be opened: %v", point, err))
		return
	}
	defer target.Close()
	switch thawed, err := target.Thaw(); {
	case err != nil:
		l.Messages = append(l.Messages, fmt.Sprintf("%s was frozen when an agent was killed, and cannot be thawed: %v", point, err))
	case thawed:
		l.Messages = append(l.Messages, point+" was frozen when an agent was killed; it is thawed now")
	}
}
