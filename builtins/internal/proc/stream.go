package proc

import (
	"bytes"
	"io"
	"os"
	"strings"
	"unicode/utf8"
)

// stream is one output of a command: the pipe, and what is kept of it.
type stream struct {
	read, write *os.File
	bound       int64
	done        chan struct{} // closed when nobody reads any more

	head  []byte // the first bound bytes
	tail  []byte // the last tailSize bytes
	over  bool   // more came than head holds
	ended bool   // the writers are gone
}

func newStream(bound int64) (*stream, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &stream{read: read, write: write, bound: bound, done: make(chan struct{})}, nil
}

// start reads until the end of the stream or a deadline on it. The fields belong to it until done is closed.
func (s *stream) start() {
	s.write.Close()
	go func() {
		defer close(s.done)
		_, err := io.Copy(s, onlyReader{s.read})
		s.ended = err == nil
	}()
}

// Write keeps what belongs to the head and the tail, and drops the rest. It never fails.
func (s *stream) Write(p []byte) (int, error) {
	keep := min(int64(len(p)), s.bound-int64(len(s.head)))
	s.head = append(s.head, p[:keep]...)
	s.over = s.over || keep < int64(len(p))
	if len(p) >= tailSize {
		s.tail = append(s.tail[:0], p[len(p)-tailSize:]...)
	} else {
		if room := tailSize - len(p); len(s.tail) > room {
			s.tail = append(s.tail[:0], s.tail[len(s.tail)-room:]...)
		}
		s.tail = append(s.tail, p...)
	}
	return len(p), nil
}

// discard closes a stream that nobody started.
func (s *stream) discard() {
	s.read.Close()
	s.write.Close()
}

// onlyReader hides the file's own ways of copying, so that the copy has one bounded buffer.
type onlyReader struct{ io.Reader }

// trimmed makes the end of an output fit for an error: valid text without space around it, and no half rune.
func trimmed(tail []byte) string {
	for i := 0; i < utf8.UTFMax && len(tail) == tailSize && i < len(tail); i++ {
		if utf8.RuneStart(tail[i]) {
			tail = tail[i:]
			break
		}
	}
	return strings.TrimSpace(string(bytes.ToValidUTF8(tail, []byte("?"))))
}
