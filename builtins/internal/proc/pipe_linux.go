package proc

import "os"

// outputPipe makes a pipe of which the agent reads, with deadlines.
func outputPipe() (read, write *os.File, err error) { return os.Pipe() }

// inputPipe makes a pipe to which the agent writes, with deadlines.
func inputPipe() (read, write *os.File, err error) { return os.Pipe() }
