package proc

import (
	"io"
	"time"
)

// Channel is a channel to a process that SpawnOn starts.
type Channel interface {
	io.ReadWriteCloser
	SetDeadline(t time.Time) error
}
