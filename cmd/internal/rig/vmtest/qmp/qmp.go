// Package qmp speaks QEMU's machine protocol: JSON commands and replies, one a line, with events in between.
//
//	Execute ──► {"execute": …, "id": n} ──► QEMU
//	waiter n ◄── reader ◄── {"return": …, "id": n} | {"event": …}
//
// Not here: which commands make up a machine; starting QEMU.
package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Conn is one connection to QEMU. Its methods may be called concurrently.
type Conn struct {
	rw   io.ReadWriteCloser
	done chan struct{} // closed when the reader has ended

	writing sync.Mutex // keeps commands whole

	mu      sync.Mutex // guards all below
	next    int
	calls   map[int]chan reply
	events  []Event
	changed chan struct{} // closed and replaced when events grows
	err     error         // why the reader ended
}

// Event is something that QEMU said unasked.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// Error is QEMU's refusal of a command.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// Error returns what QEMU said.
func (e *Error) Error() string { return e.Desc }

type reply struct {
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
	ID     *int            `json:"id"`
	Event
}

// New takes over rw, whose other end is QEMU's monitor, and leaves its greeting mode. Close ends it.
func New(ctx context.Context, rw io.ReadWriteCloser) (*Conn, error) {
	c := &Conn{rw: rw, done: make(chan struct{}), calls: map[int]chan reply{}, changed: make(chan struct{})}
	go c.read()
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close closes the stream and waits for the reader. Calls in flight return an error.
func (c *Conn) Close() error {
	err := c.rw.Close()
	<-c.done
	return err
}

// Execute sends a command with its arguments (anything that encodes to a JSON object, or nil) and decodes what it returns
// into result unless that is nil. A refusal is an *Error.
func (c *Conn) Execute(ctx context.Context, command string, arguments, result any) error {
	id, answer, err := c.send(command, arguments)
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	select {
	case r, ok := <-answer:
		switch {
		case !ok:
			return fmt.Errorf("qmp %s: %w", command, c.cause())
		case r.Error != nil:
			return fmt.Errorf("qmp %s: %w", command, r.Error)
		case result != nil:
			return json.Unmarshal(r.Return, result)
		}
		return nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.calls, id)
		c.mu.Unlock()
		return fmt.Errorf("qmp %s: %w", command, context.Cause(ctx))
	}
}

func (c *Conn) send(command string, arguments any) (int, chan reply, error) {
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return 0, nil, c.err
	}
	c.next++
	id, answer := c.next, make(chan reply, 1)
	c.calls[id] = answer
	c.mu.Unlock()

	request := map[string]any{"execute": command, "id": id}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return 0, nil, err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	_, err = c.rw.Write(append(line, '\n'))
	return id, answer, err
}

// Wait returns the oldest event for which match answers true, and forgets it; events that came before the call count.
func (c *Conn) Wait(ctx context.Context, match func(Event) bool) (Event, error) {
	for {
		c.mu.Lock()
		if i := slices.IndexFunc(c.events, match); i >= 0 {
			e := c.events[i]
			c.events = slices.Delete(c.events, i, i+1)
			c.mu.Unlock()
			return e, nil
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-c.done:
			return Event{}, fmt.Errorf("qmp wait: %w", c.cause())
		case <-ctx.Done():
			return Event{}, fmt.Errorf("qmp wait: %w", context.Cause(ctx))
		}
	}
}

func (c *Conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// read is the only reader. It ends with the stream.
func (c *Conn) read() {
	defer close(c.done)
	dec := json.NewDecoder(c.rw)
	for {
		var r reply
		err := dec.Decode(&r)
		c.mu.Lock()
		switch {
		case err != nil:
			c.fail(err)
			c.mu.Unlock()
			return
		case r.Name != "":
			c.events = append(c.events, r.Event)
			close(c.changed)
			c.changed = make(chan struct{})
		case r.ID != nil:
			if answer, ok := c.calls[*r.ID]; ok {
				delete(c.calls, *r.ID)
				answer <- r
			}
		}
		c.mu.Unlock()
	}
}

// fail records why the stream ended and releases the calls that wait. It is called with mu held.
func (c *Conn) fail(err error) {
	if errors.Is(err, io.EOF) {
		err = errors.New("qemu has ended")
	}
	c.err = err
	for id, answer := range c.calls {
		delete(c.calls, id)
		close(answer)
	}
}
