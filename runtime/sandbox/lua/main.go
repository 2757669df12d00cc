// Package lua is the inside of a runner process: it takes one script over its connection, runs it, and ends.
//
//	Main: seal ──► READY ──► Start ──► parse, compile, run ──► Done
//	                                       │   ▲
//	                              RunnerCall   RunnerReply     each builtin is a question to the agent
//
// It is the only place that knows Lua. Nothing here guards the agent: a script that breaks out of the interpreter has a
// process without rights, and what the agent gets to hear it takes for hostile. What is here makes honest scripts work
// and wrong ones fail with a message that helps.
//
// Not here: what a builtin does, who may call it, and the limits that the agent enforces from outside.
package lua

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"

	glua "github.com/yuin/gopher-lua"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/confine"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/link"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Main is the whole life of a runner, and gives its exit status. args are the program's, after the one that made it a
// runner: bytes of heap, whole seconds of processor time, and depth of calls.
func Main(args []string) int {
	l, err := limits(args)
	if err == nil {
		err = live(newWire(), l)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "script runner:", err)
		return 1
	}
	return 0
}

// limited is what a runner holds itself to.
type limited struct {
	memory, cpu uint64
	depth       int
}

func limits(args []string) (l limited, err error) {
	if len(args) != 3 {
		return l, fmt.Errorf("this process is started by the agent only")
	}
	var err1, err2, err3 error
	l.memory, err1 = strconv.ParseUint(args[0], 10, 62)
	l.cpu, err2 = strconv.ParseUint(args[1], 10, 31)
	l.depth, err3 = strconv.Atoi(args[2])
	return l, errors.Join(err1, err2, err3)
}

// live seals the process, runs one script, and says how it went.
func live(w *wire, l limited) error {
	memory := l.memory
	stop := newStopper()
	watch(stop)
	// No list can be longer within the heap. The interpreter fills the lists of what is not longer up to the highest
	// index, so that t[67108863] = 1 alone would take a gigabyte.
	glua.MaxArrayIndex = int(min(memory/valueSize, uint64(glua.MaxArrayIndex)))
	warmUp()
	debug.FreeOSMemory()
	debug.SetMaxStack(l.depth * stackEach)
	debug.SetMemoryLimit(int64(memory / 8 * 7))
	if err := confine.Seal(confine.Limits{AddressSpace: memory + arenas, CPU: l.cpu}); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	if err := w.send(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Ready{Ready: &pb.RunnerReady{}}}); err != nil {
		return err
	}
	m, err := w.in.Read()
	if err == io.EOF {
		return nil // not needed after all
	}
	if err != nil {
		return err
	}
	start := m.GetStart()
	if start == nil {
		return fmt.Errorf("the agent began with something else than a script")
	}
	stop.memory, stop.depth = memory, l.depth
	go sample(stop, memory)
	done := execute(start, w, stop)
	if size := proto.Size(done); size > link.MaxBytes/2 { // far beyond what the agent takes for a result
		done = &pb.RunnerDone{Error: &pb.RunnerFailure{
			Kind: "result", Code: tooLarge, Message: fmt.Sprintf("result has %d bytes", size), Script: start.GetName(),
		}}
	}
	if err := w.send(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Done{Done: done}}); err != nil {
		return err
	}
	w.in.Read() //nolint:errcheck // the agent measures this process, and then kills it
	return nil
}

// tooLarge is the code of a failure that is about size alone.
const tooLarge = "too_large"

// stackEach makes deep recursion in Go (the parser's, a pattern's) fatal before it is large: bytes for each call that may
// wait for another.
const stackEach = 64 << 10

// arenas is address space beyond the heap limit: Go reserves it 64 MiB at a time, and stacks and tables of the runtime
// take some too. Less would kill honest scripts.
const arenas = 128 << 20

// watch stops the script when the agent asks for it.
func watch(stop *stopper) {
	if interruption == nil {
		return
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, interruption)
	go func() { // ends with the process
		for range asked {
			stop.now("cancelled", "the script was stopped")
		}
	}()
}

// warmUp does once what a script would otherwise wait for, and what a sealed process may no longer do.
func warmUp() {
	start := &pb.RunnerStart{
		Name: "warm", Source: []byte(`return {1, a = json.decode(json.encode({b = string.format("%d", 1)}))}`),
	}
	done := execute(start, nil, newStopper())
	m := &pb.RunnerMessage{Kind: &pb.RunnerMessage_Done{Done: done}}
	if frame, err := link.Encode(m, link.FromRunner); err == nil {
		proto.Unmarshal(frame[4:], &pb.RunnerMessage{}) //nolint:errcheck // only its tables count
	}
}

// wire is the connection to the agent. One message is on its way at a time.
type wire struct {
	in  *link.Reader
	out io.Writer
}

func newWire() *wire {
	return &wire{in: link.NewReader(connection{}, link.ToRunner), out: connection{}}
}

func (w *wire) send(m *pb.RunnerMessage) error {
	frame, err := link.Encode(m, link.FromRunner)
	if err != nil {
		return err
	}
	_, err = w.out.Write(frame)
	return err
}

// ask sends a call and waits for its reply. Only link.ErrTooLarge comes back as an error: without an agent there is
// nothing left to live for.
func (w *wire) ask(call *pb.RunnerCall) (*pb.RunnerReply, error) {
	frame, err := link.Encode(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Call{Call: call}}, link.FromRunner)
	if err != nil {
		return nil, err
	}
	if _, err = w.out.Write(frame); err == nil {
		var m *pb.RunnerMessage
		if m, err = w.in.Read(); err == nil && m.GetReply() != nil {
			return m.GetReply(), nil
		}
	}
	os.Exit(orphaned)
	return nil, nil
}

// tell sends what needs no answer.
func (w *wire) tell(m *pb.RunnerMessage) {
	if err := w.send(m); err != nil {
		os.Exit(orphaned)
	}
}

// orphaned is the exit status of a runner whose agent is gone.
const orphaned = 3
