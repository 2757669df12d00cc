// Package lua is the inside of a runner process: it takes one script over its connection, runs it, and ends.
//
//	Main: seal ──► READY ──► Start ──► parse, compile, run ──► Done
//	                                       │   ▲
//	                              RunnerCall   RunnerReply     each builtin is a call to the agent
//
// It is the only package that knows Lua. Nothing here protects the agent: a script that breaks out of the interpreter is in
// a process without privileges, and the agent trusts nothing that a runner sends. What is here makes honest scripts work and
// wrong ones fail with a message that helps.
//
// Not here: what a builtin does, who may call it, and the limits that the agent enforces from outside.
package lua

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/confine"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/framing"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Main is the main function of a runner; it returns the exit status. args are those of the program after sandbox.Arg:
// bytes of heap, whole seconds of processor time, and depth of calls.
func Main(args []string) int {
	l, err := parseLimits(args)
	if err == nil {
		err = runOne(newClient(), l)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "script runner:", err)
		return 1
	}
	return 0
}

// limits are what a runner imposes on itself.
type limits struct {
	memory, cpu uint64
	depth       int
}

func parseLimits(args []string) (l limits, err error) {
	if len(args) != 3 {
		return l, fmt.Errorf("this process is started by the agent only")
	}
	var err1, err2, err3 error
	l.memory, err1 = strconv.ParseUint(args[0], 10, 62)
	l.cpu, err2 = strconv.ParseUint(args[1], 10, 31)
	l.depth, err3 = strconv.Atoi(args[2])
	return l, errors.Join(err1, err2, err3)
}

// runOne seals the process, runs one script, and reports its result.
func runOne(c *client, l limits) error {
	memory := l.memory
	stop := newStopper()
	onInterrupt(func() { stop.stop("cancelled", "the script was stopped") })
	boundLists(memory)
	warmUp()
	debug.SetMaxStack(l.depth * goStackPerCall)
	debug.SetMemoryLimit(int64(memory / 8 * 7))
	if err := confine.Seal(confine.Limits{AddressSpace: memory + addressSpaceOverhead, CPU: l.cpu}); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	if err := c.send(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Ready{Ready: &pb.RunnerReady{}}}); err != nil {
		return err
	}
	settle := time.AfterFunc(settleAfter, debug.FreeOSMemory)
	m, err := c.in.Read()
	settle.Stop()
	if err == io.EOF {
		return nil // the agent did not need this runner
	}
	if err != nil {
		return err
	}
	start := m.GetStart()
	if start == nil {
		return fmt.Errorf("the agent began with something else than a script")
	}
	stop.memory, stop.depth = memory, l.depth
	go watchHeap(stop, memory)
	done := execute(start, c, stop)
	if size := proto.Size(done); size > framing.MaxBytes/2 { // far beyond what the agent takes for a result
		done = &pb.RunnerDone{Error: &pb.RunnerFailure{
			Kind: "result", Code: tooLarge, Message: fmt.Sprintf("result has %d bytes", size), Script: start.GetName(),
		}}
	}
	if err := c.send(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Done{Done: done}}); err != nil {
		return err
	}
	c.in.Read() //nolint:errcheck // the agent measures this process, and then kills it
	return nil
}

// settleAfter is how long a runner waits for its script before it gives back the memory that its start took. That takes as
// long as a fifth of the start, in which one script after the other would wait for it.
const settleAfter = 2 * time.Second

// tooLarge is the code of errors about size alone.
const tooLarge = "too_large"

// goStackPerCall is how much Go stack the process may use for each nested call of the depth limit, in bytes. Deep
// recursion in Go, of the parser or an encoder, is fatal before it takes much memory.
const goStackPerCall = 64 << 10

// addressSpaceOverhead is address space beyond the heap limit, in bytes: Go reserves it 64 MiB at a time, and stacks
// and tables of the runtime take some too. With less, honest scripts die.
const addressSpaceOverhead = 128 << 20

// warmUp does in advance what is slow the first time, and what a sealed process may no longer do.
func warmUp() {
	start := &pb.RunnerStart{
		Name: "warm", Source: []byte(`return {1, a = json.decode(json.encode({b = string.format("%d", 1)}))}`),
	}
	done := execute(start, nil, newStopper())
	m := &pb.RunnerMessage{Kind: &pb.RunnerMessage_Done{Done: done}}
	if frame, err := framing.Encode(m, framing.MaxFromRunner); err == nil {
		proto.Unmarshal(frame[4:], &pb.RunnerMessage{}) //nolint:errcheck // it is for the tables that this initializes
	}
}

// client sends messages to the agent. It has one call in flight at a time.
type client struct {
	in  *framing.Reader
	out io.Writer
}

func newClient() *client {
	return &client{in: framing.NewReader(agentConn{}, framing.MaxToRunner), out: agentConn{}}
}

func (c *client) send(m *pb.RunnerMessage) error {
	frame, err := framing.Encode(m, framing.MaxFromRunner)
	if err != nil {
		return err
	}
	_, err = c.out.Write(frame)
	return err
}

// call sends a call and waits for its reply. The only error is framing.ErrTooLarge: where the connection fails the
// process exits.
func (c *client) call(call *pb.RunnerCall) (*pb.RunnerReply, error) {
	frame, err := framing.Encode(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Call{Call: call}}, framing.MaxFromRunner)
	if err != nil {
		return nil, err
	}
	if _, err = c.out.Write(frame); err == nil {
		var m *pb.RunnerMessage
		if m, err = c.in.Read(); err == nil && m.GetReply() != nil {
			return m.GetReply(), nil
		}
	}
	os.Exit(exitAgentGone)
	return nil, nil
}

// notify sends a message that has no reply.
func (c *client) notify(m *pb.RunnerMessage) {
	if err := c.send(m); err != nil {
		os.Exit(exitAgentGone)
	}
}

// exitAgentGone is the exit status of a runner whose agent is gone.
const exitAgentGone = 3
