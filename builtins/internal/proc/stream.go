package proc

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// stream is one output of a command: the pipe, and what was captured.
type stream struct {
	read, write *os.File
	limit       int64
	done        chan struct{} // closed when its reader returned

	last      time.Time // when the last bytes came
	kept      capture   // the first limit bytes
	tail      []byte    // the last tailSize bytes
	truncated bool      // more was written than was kept
	eof       bool      // all writers closed it
}

func newStream(bound int64, spool Spool) (*stream, error) {
	read, write, err := outputPipe()
	if err != nil {
		return nil, err
	}
	return &stream{read: read, write: write, limit: bound, kept: capture{spool: spool}, done: make(chan struct{})}, nil
}

// outputBuffer is the size of one read of an output, in bytes.
const outputBuffer = 32 << 10

// start reads until the end of the stream or its read deadline, into a buffer of the pool. The fields must not be used before
// done is closed.
func (s *stream) start(buffers *sync.Pool) {
	s.write.Close()
	go func() {
		defer close(s.done)
		buf, ok := buffers.Get().(*[]byte)
		if !ok {
			buf = new(make([]byte, outputBuffer))
		}
		defer buffers.Put(buf)
		for {
			n, err := s.read.Read(*buf)
			s.Write((*buf)[:n])
			if err != nil {
				s.eof = err == io.EOF
				return
			}
		}
	}()
}

// Write stores what belongs to the head and the tail, and drops the rest. It never fails.
func (s *stream) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.last = time.Now()
	keep := min(int64(len(p)), s.limit-s.kept.size())
	s.kept.add(p[:keep])
	s.truncated = s.truncated || keep < int64(len(p))
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

// discard closes a stream that was not started.
func (s *stream) discard() {
	s.read.Close()
	s.write.Close()
	s.kept.close()
}

// tailText returns the end of an output for an error: valid UTF-8 without surrounding space, no part of a rune, and of a
// longer output no short part of a word, by which a secret would not be recognised.
func tailText(tail []byte) string {
	if space := bytes.IndexAny(tail, " \t\r\n"); len(tail) == tailSize && space >= 0 && space < shortWord {
		tail = tail[space:]
	}
	for i := 0; i < utf8.UTFMax && len(tail) == tailSize && i < len(tail); i++ {
		if utf8.RuneStart(tail[i]) {
			tail = tail[i:]
			break
		}
	}
	return strings.TrimSpace(string(bytes.ToValidUTF8(tail, []byte("?"))))
}
