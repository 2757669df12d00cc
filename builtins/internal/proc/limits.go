package proc

import "time"

// Limits bound what a command, and all that it starts, may use together; 0: no bound. They are held on Windows alone; elsewhere
// a command with one is not started.
type Limits struct {
	// Memory is how much memory may be committed, in bytes. Over it the command is given none, and most programs end.
	Memory uint64
	// Processor is how much processor time may be used in user mode. Over it all of the command is ended.
	Processor time.Duration
}
