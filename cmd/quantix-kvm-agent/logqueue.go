package main

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap/zapcore"
)

const (
	maxQueuedLog = 4 << 20     // bytes that wait to be written; what is over that is counted
	logSyncTime  = time.Second // that the end of the agent waits for the log
)

// logQueue writes lines in the background, so that nobody who logs waits for a disk. While a file system is frozen it
// only keeps them: the log, or the journal behind it, may be on that, and a write would hang where not even SIGKILL
// ends it.
type logQueue struct {
	to   zapcore.WriteSyncer
	done chan struct{}

	mu      sync.Mutex
	changed sync.Cond
	lines   [][]byte
	size    int // bytes of lines
	dropped int // lines
	held    bool
	writing bool
	closed  bool
}

// newLogQueue starts a queue in front of a sink. close ends it.
func newLogQueue(to zapcore.WriteSyncer) *logQueue {
	q := &logQueue{to: to, done: make(chan struct{})}
	q.changed.L = &q.mu
	go q.run()
	return q
}

// Write keeps a line. It never waits and never fails.
func (q *logQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.size+len(line) > maxQueuedLog {
		q.dropped++
		return len(line), nil
	}
	q.lines = append(q.lines, bytes.Clone(line)) // the caller uses its memory again
	q.size += len(line)
	q.changed.Broadcast()
	return len(line), nil
}

// hold stops the writing, or has it go on.
func (q *logQueue) hold(held bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held = held
	q.changed.Broadcast()
}

// Sync waits until all is written, for a while at most.
func (q *logQueue) Sync() error {
	timer := time.AfterFunc(logSyncTime, func() { q.mu.Lock(); defer q.mu.Unlock(); q.changed.Broadcast() })
	defer timer.Stop()
	deadline := time.Now().Add(logSyncTime)
	q.mu.Lock()
	defer q.mu.Unlock()
	for (len(q.lines) > 0 || q.writing) && !q.held && time.Now().Before(deadline) {
		q.changed.Wait()
	}
	return nil
}

// close writes what is left, if that is possible in time, and ends the queue. What is held is lost.
func (q *logQueue) close() {
	q.Sync() //nolint:errcheck // it has none
	q.mu.Lock()
	q.closed = true
	q.changed.Broadcast()
	q.mu.Unlock()
	select {
	case <-q.done:
	case <-time.After(logSyncTime):
	}
}

func (q *logQueue) run() {
	defer close(q.done)
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for (len(q.lines) == 0 || q.held) && !q.closed {
			q.changed.Wait()
		}
		if q.closed {
			return
		}
		lines, dropped := q.lines, q.dropped
		q.lines, q.size, q.dropped, q.writing = nil, 0, 0, true
		q.mu.Unlock()
		if dropped > 0 {
			lines = append(lines, fmt.Appendf(nil, "%d lines of the log are lost here\n", dropped))
		}
		for _, line := range lines { // one by one: a file is rotated between two
			q.to.Write(line) //nolint:errcheck // there is nowhere to say so
		}
		q.mu.Lock()
		q.writing = false
		q.changed.Broadcast()
	}
}
