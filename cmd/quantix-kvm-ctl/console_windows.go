package main

import (
	"os"

	"golang.org/x/sys/windows"
)

// understandsEscapes has the console behind an output understand escape sequences. Before Windows 10 it cannot.
func understandsEscapes(f *os.File) bool {
	h := windows.Handle(f.Fd())
	var mode uint32
	if windows.GetConsoleMode(h, &mode) != nil {
		return false
	}
	return windows.SetConsoleMode(h, mode|windows.ENABLE_PROCESSED_OUTPUT|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}
