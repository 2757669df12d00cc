package main

import (
	"strconv"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// permissionBits are what a mode of a message is looked at for: other agents put the type of the file into it as well.
const permissionBits = 0o7777

// parseMode reads an octal mode; "" is 0.
func parseMode(text string) (uint32, error) {
	if text == "" {
		return 0, nil
	}
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil || mode > permissionBits || mode == 0 {
		return 0, usage("--mode %s is no octal mode such as 0644", text)
	}
	return uint32(mode), nil
}

// kindOf returns what an entry is, in words and as the letter of ls. The mode says it as that of stat(2), if the agent puts the
// type of the file into it.
func kindOf(e *pb.DirectoryEntry) (words string, letter byte) {
	switch bits := e.Mode &^ permissionBits; {
	case e.IsSymlink:
		return "link", 'l'
	case e.IsDirectory:
		return "directory", 'd'
	case bits == 0o010000:
		return "fifo", 'p'
	case bits == 0o020000:
		return "character device", 'c'
	case bits == 0o060000:
		return "block device", 'b'
	case bits == 0o140000:
		return "socket", 's'
	}
	return "file", '-'
}

// modeText writes type and permissions as ls does.
func modeText(e *pb.DirectoryEntry) string {
	text := []byte("-rwxrwxrwx")
	_, text[0] = kindOf(e)
	for i := range 9 {
		if e.Mode&(1<<(8-i)) == 0 {
			text[1+i] = '-'
		}
	}
	for i, letters := range []string{"sS", "sS", "tT"} {
		if e.Mode&(0o4000>>i) == 0 {
			continue
		}
		at := 3 + 3*i
		letter := letters[0]
		if text[at] == '-' {
			letter = letters[1]
		}
		text[at] = letter
	}
	return string(text)
}
