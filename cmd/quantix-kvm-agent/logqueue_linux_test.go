package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"
)

// Nobody who logs waits: neither while the log is held, nor while a write hangs; nothing but what is over the bound is
// lost.
func TestLogIsKeptWhileFrozen(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	q := newLogQueue(zapcore.AddSync(write))
	q.hold(true)
	q.Write([]byte("first\n"))
	read.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := read.Read(make([]byte, 10)); err == nil {
		t.Errorf("%d bytes are written while the log is held", n)
	}
	q.hold(false)
	q.Write(bytes.Repeat([]byte("x"), maxQueuedLog/2)) // more than a pipe takes: the write hangs
	hangs := func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.writing && len(q.lines) == 0
	}
	for !hangs() {
		time.Sleep(time.Millisecond)
	}
	for range 3 { // two are kept
		q.Write(bytes.Repeat([]byte("y"), maxQueuedLog/2))
	}
	got := make(chan string)
	read.SetReadDeadline(time.Time{})
	go func() {
		var all bytes.Buffer
		all.ReadFrom(read)
		got <- all.String()
	}()
	q.close()
	write.Close()
	if text := <-got; !strings.HasPrefix(text, "first\nx") || !strings.Contains(text, "y") || !strings.HasSuffix(text, "lines of the log are lost here\n") {
		t.Errorf("%d bytes, which begin with %.20q", len(text), text)
	}
}
