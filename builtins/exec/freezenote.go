package exec

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// freezeNote is the file in which an agent notes what commands froze, for the agent that follows a killed one. It must
// be on a tmpfs: a write to a frozen file system would block. While something is noted the agent has it locked, so that
// another one that is started by mistake leaves it alone.
type freezeNote struct {
	path string // empty: there is none
	file *os.File
}

// write replaces the note. If it fails the timers still thaw, unless the agent is killed.
func (n *freezeNote) write(known map[string]*freeze) {
	var text strings.Builder
	for point, frozen := range known {
		if frozen.timer != nil {
			fmt.Fprintf(&text, "%q\n", point)
		}
	}
	switch {
	case n.path == "":
	case text.Len() > 0 && n.file == nil:
		file, err := os.OpenFile(n.path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return
		}
		if !lockFile(file) { // another agent's
			file.Close()
			return
		}
		n.file = file
		fallthrough
	case text.Len() > 0:
		_ = n.file.Truncate(0)
		_, _ = n.file.WriteAt([]byte(text.String()), 0)
	case n.file != nil:
		_ = os.Remove(n.path)
		n.file.Close()
		n.file = nil
	}
}

// ThawLeft thaws what commands of a killed agent left frozen, as noted in file, its Config.FreezeFile. It returns a
// message for each file system that was frozen; none while the agent that noted it lives. It must be called before
// anything is written to a disk.
func ThawLeft(file string) (messages []string) {
	note, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	defer note.Close()
	if !lockFile(note) {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		path, err := strconv.Unquote(strings.TrimSpace(line))
		if err != nil {
			continue
		}
		target, err := openThawTarget(path)
		if err != nil {
			continue
		}
		thawed, err := target.thaw()
		target.close()
		switch {
		case err != nil:
			messages = append(messages,
				fmt.Sprintf("%s was frozen when an agent was killed, and cannot be thawed: %v", path, err))
		case thawed:
			messages = append(messages, path+" was frozen when an agent was killed; it is thawed now")
		}
	}
	_ = os.Remove(file)
	return messages
}
