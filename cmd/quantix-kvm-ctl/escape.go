package main

import (
	"bytes"
	"io"
)

// escapeReader reads the keys of a terminal, and knows the way out of a command that hangs: a tilde and a dot at the beginning
// of a line, as ssh does. Two tildes are one.
type escapeReader struct {
	from  io.Reader
	leave func() // is called for it; the input then ends

	state escapeState
	ready bytes.Buffer // is to be read
	left  bool
}

type escapeState int

const (
	atLineStart escapeState = iota
	inLine
	behindTilde
)

// Read implements io.Reader.
func (r *escapeReader) Read(p []byte) (int, error) {
	for r.ready.Len() == 0 {
		if r.left {
			return 0, io.EOF
		}
		n, err := r.from.Read(p)
		for _, key := range p[:n] {
			if !r.key(key) {
				r.left = true
				r.leave()
				break
			}
		}
		if err != nil && r.ready.Len() == 0 {
			return 0, err
		}
	}
	return r.ready.Read(p)
}

// key takes one key; false: it was the last of the way out.
func (r *escapeReader) key(key byte) bool {
	switch {
	case r.state == atLineStart && key == '~':
		r.state = behindTilde
		return true
	case r.state == behindTilde && key == '.':
		return false
	case r.state == behindTilde && key != '~': // it was one of the command's
		r.ready.WriteByte('~')
	}
	r.ready.WriteByte(key)
	r.state = inLine
	if key == '\r' || key == '\n' {
		r.state = atLineStart
	}
	return true
}
