package main

import (
	"os"
	"sync"
	"sync/atomic"
)

// output is the standard output. It remembers the first write that failed, so that no command whose output was lost ends as
// done.
type output struct {
	file  *os.File
	wrote atomic.Bool // anything

	mu   sync.Mutex
	lost error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.file.Write(p)
	if n > 0 {
		o.wrote.Store(true)
	}
	if err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.lost == nil {
			o.lost = err
		}
	}
	return n, err
}

// err returns the error of the first write that failed.
func (o *output) err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lost
}
