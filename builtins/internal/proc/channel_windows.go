package proc

import (
	"errors"
	"os"
	"time"
)

// duplex is a pipe in each direction: what is read and written at the same time takes two here.
type duplex struct{ read, write *os.File }

// NewChannel makes a channel to a process that is started with stdin and stdout, which may be one file. The caller closes all.
func NewChannel() (ours Channel, stdin, stdout *os.File, err error) {
	d := duplex{}
	if stdin, d.write, err = inputPipe(); err != nil {
		return nil, nil, nil, err
	}
	if d.read, stdout, err = outputPipe(); err != nil {
		return nil, nil, nil, errors.Join(err, stdin.Close(), d.write.Close())
	}
	return d, stdin, stdout, nil
}

// Read implements Channel.
func (d duplex) Read(p []byte) (int, error) { return d.read.Read(p) }

// Write implements Channel.
func (d duplex) Write(p []byte) (int, error) { return d.write.Write(p) }

// Close implements Channel.
func (d duplex) Close() error { return errors.Join(d.read.Close(), d.write.Close()) }

// SetDeadline implements Channel.
func (d duplex) SetDeadline(t time.Time) error {
	return errors.Join(d.read.SetDeadline(t), d.write.SetDeadline(t))
}
