package sandbox_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestMemoryNamesLineAndLimit(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	job := script("local t = {}\nwhile true do\n  t[#t + 1] = {1}\nend")
	job.Start.MemoryLimit = 32 << 20
	e := mustFail(t, pool, job, "memory", "used up its memory")
	if e.GetLimit() != "script.memory_limit_bytes=33554432" || e.GetLine() < 2 || e.GetLine() > 4 {
		t.Errorf("error is %v", e)
	}
}

func TestHonestUseOfMostOfTheMemory(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	out := mustRun(t, pool, script(`
		local t, s = {}, string.rep("x", 1048576)
		for round = 1, 30 do -- garbage, as honest scripts make it
			for i = 1, 20 do t[i] = s .. i end
		end
		return #t`))
	if out.Result.GetNumber() != 20 {
		t.Errorf("result is %v", out.Result)
	}
}

// frame returns a message with its length before it.
func frame(m *pb.RunnerMessage) []byte {
	payload, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return raw(payload)
}

func raw(payload []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(payload))), payload...)
}

func callOf(args ...*pb.LuaValue) []byte {
	return frame(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Call{Call: &pb.RunnerCall{Name: "file.read", Args: args}}})
}

var readyFrame = frame(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Ready{Ready: &pb.RunnerReady{}}})

// malformedMessages are what a hostile runner might send after it got its script.
var malformedMessages = map[string][]byte{
	"length":         {0xff, 0xff, 0xff, 0xff},
	"length, short":  {0, 0x7f, 0xff, 0xff, 1, 2, 3},
	"nothing":        raw(nil),
	"garbage":        raw([]byte("\xff\xfe\xfd no message")),
	"unknown field":  raw(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1)),
	"two at once":    raw(append(readyFrame[4:], readyFrame[4:]...)),
	"ready again":    readyFrame,
	"reply":          frame(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Reply{Reply: &pb.RunnerReply{}}}),
	"two kinds":      raw(append(slices.Clone(readyFrame[4:]), callOf()[4:]...)),
	"half a field":   raw(callOf(text("x"))[4:9]),
	"start":          frame(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Start{Start: &pb.RunnerStart{}}}),
	"elements":       callOf(slices.Repeat([]*pb.LuaValue{{}}, 100_000)...),
	"depth":          callOf(nested(500)),
	"not a function": frame(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Call{Call: &pb.RunnerCall{Name: "power.reboot"}}}),
	"script name": frame(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Call{
		Call: &pb.RunnerCall{Name: "file.read", Script: strings.Repeat("x", 1000)},
	}}),
	"kind": frame(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Done{
		Done: &pb.RunnerDone{Error: &pb.RunnerFailure{Kind: "policy"}},
	}}),
}

// hostileArg makes this program a hostile runner.
const hostileArg = "hostile"

// hostileRunner is the main function of a hostile runner.
func hostileRunner(how string) int {
	conn := runnerConn()
	if how == "dead" {
		return 1
	}
	if how == "mute" {
		time.Sleep(time.Minute)
	}
	if how == "early" {
		conn.Write(frame(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Done{Done: &pb.RunnerDone{}}}))
		time.Sleep(time.Minute)
	}
	conn.Write(readyFrame)
	if how == "short-lived" {
		return 0
	}
	conn.Read(make([]byte, 4096))
	if message, ok := malformedMessages[how]; ok {
		conn.Write(message)
		time.Sleep(time.Minute) // the agent must not wait for it
		return 0
	}
	act := hostileActs[how]
	if act == nil {
		act = hostileActsHere[how]
	}
	if act == nil {
		panic("no such act: " + how)
	}
	act(conn)
	runtime.KeepAlive(conn) // else the collector closes it
	return 0
}

// hostileActs are what a hostile runner might do after it got its script.
var hostileActs = map[string]func(conn *os.File){
	"crash": func(*os.File) { panic("out of order") },
	"talks on": func(conn *os.File) {
		done := frame(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Done{Done: &pb.RunnerDone{Result: number(7)}}})
		line := frame(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Log{Log: &pb.RunnerLog{Message: []byte("x")}}})
		conn.Write(slices.Concat(done, callOf(text("x")), line, done))
		forever(conn, callOf(text("x")))
	},
	"flood of progress": func(conn *os.File) {
		forever(conn, frame(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Progress{Progress: &pb.RunnerProgress{Fraction: proto.Float64(math.NaN()), Step: make([]byte, 1<<20)}}}))
	},
	"flood of the large": func(conn *os.File) {
		forever(conn, callOf(&pb.LuaValue{Kind: &pb.LuaValue_String_{String_: make([]byte, 8<<20-100)}}))
	},
	"hang up": func(conn *os.File) { conn.Close(); time.Sleep(time.Minute) },
	"deaf":    func(conn *os.File) { forever(conn, callOf(text(strings.Repeat("x", 1000)))) },
	"flood": func(conn *os.File) {
		forever(conn, frame(&pb.RunnerMessage{Kind: &pb.RunnerMessage_Log{Log: &pb.RunnerLog{Message: []byte("x")}}}))
	},
	"stderr": func(*os.File) { os.Stderr.Write(bytes.Repeat([]byte("\xffx"), 10<<20)); os.Exit(9) },
	"exit":   func(*os.File) { os.Exit(0) },
}

func forever(conn *os.File, message []byte) {
	for {
		if _, err := conn.Write(message); err != nil {
			return
		}
	}
}

// hostilePool returns a pool with hostile runners.
func hostilePool(t *testing.T, how string, limits sandbox.Limits) *sandbox.Pool {
	return newPool(t, sandbox.Config{Args: []string{hostileArg, how}, Limits: limits})
}

func hostileJob() sandbox.Job {
	job := script("return 1")
	job.Start.Functions = functions("file.read")
	job.Call = func(context.Context, *pb.RunnerCall) *pb.RunnerReply { return &pb.RunnerReply{Value: text("x")} }
	return job
}

func TestMalformedMessagesEndTheRunner(t *testing.T) {
	for how := range malformedMessages {
		t.Run(how, func(t *testing.T) {
			if how == "length, short" { // it may yet come
				mustFail(t, hostilePool(t, how, sandbox.Limits{Wall: time.Second}), hostileJob(), "timeout", "")
				return
			}
			mustFail(t, hostilePool(t, how, sandbox.Limits{Wall: time.Minute}), hostileJob(), "sandbox", "broke the protocol")
		})
	}
}

// TestNothingHappensAfterTheResult: what a runner sends after its result is not read.
func TestNothingHappensAfterTheResult(t *testing.T) {
	job := hostileJob()
	job.Call = func(context.Context, *pb.RunnerCall) *pb.RunnerReply {
		t.Error("a builtin was called after the result")
		return nil
	}
	job.Log = func(*pb.LogLine) { t.Error("a line was logged after the result") }
	out := mustRun(t, hostilePool(t, "talks on", sandbox.Limits{}), job)
	if out.Result.GetNumber() != 7 || out.Stats.GetCalls() != 0 {
		t.Errorf("result is %v after %v", out.Result, out.Stats)
	}
}

func TestHostileRunners(t *testing.T) {
	for _, c := range []struct{ how, kind, words string }{
		{"dead", "sandbox", "cannot start"},
		{"early", "sandbox", "something else than ready"},
		{"mute", "timeout", ""},
		{"crash", "internal", "out of order"},
		{"hang up", "sandbox", "hung up"},
		{"deaf", "calls", ""},
		{"flood", "timeout", ""},
		{"flood of progress", "timeout", ""},
		{"flood of the large", "timeout", ""},
		{"stderr", "internal", `\xffx`},
		{"exit", "internal", "exit status 0"},
	} {
		t.Run(c.how, func(t *testing.T) {
			if c.how == "hang up" && !hangsUp() {
				t.Skip("Wine keeps the connection of a runner open that closes it: such a one ends with the wall time")
			}
			pool := hostilePool(t, c.how, sandbox.Limits{Calls: 10})
			if strings.HasPrefix(c.how, "flood") || c.how == "mute" {
				pool = hostilePool(t, c.how, sandbox.Limits{Wall: 500 * time.Millisecond})
			}
			mustFail(t, pool, hostileJob(), c.kind, c.words)
		})
	}
}

// TestDeafRunner: replies that a runner does not read must not block the agent.
func TestDeafRunner(t *testing.T) {
	pool := hostilePool(t, "deaf", sandbox.Limits{Wall: time.Second, Calls: 1 << 30})
	job := hostileJob()
	job.Call = func(context.Context, *pb.RunnerCall) *pb.RunnerReply {
		return &pb.RunnerReply{Value: text(strings.Repeat("x", 1<<20))}
	}
	mustFail(t, pool, job, "timeout", "")
}

// A time limit that ends while the runner starts is that and nothing else, also at the moment when the runner is ready.
func TestTimeEndsDuringTheStart(t *testing.T) {
	began := time.Now()
	mustRun(t, newPool(t, sandbox.Config{}), script("return 1"))
	start := time.Since(began)
	runs := 200
	if runtime.GOOS == "windows" { // a process takes longer to start there
		runs = 20
	}
	for i := range runs {
		wall := start * time.Duration(i+1) / time.Duration(runs)
		pool := sandbox.New(sandbox.Config{Limits: sandbox.Limits{Wall: wall}})
		out := pool.Run(t.Context(), script("return 1"))
		pool.Close()
		if out.Error != nil && out.Error.Kind != "timeout" {
			t.Errorf("%v of %v: %v", wall, start, out.Error)
		}
	}
}

func TestCloseEndsARun(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	job := script("file.read('/x')")
	job.Start.Functions = functions("file.read")
	called := make(chan struct{})
	job.Call = func(ctx context.Context, _ *pb.RunnerCall) *pb.RunnerReply { close(called); <-ctx.Done(); return nil }
	ended := make(chan *pb.ScriptError)
	go func() { ended <- pool.Run(t.Context(), job).Error }()
	<-called
	pool.Close()
	if e := <-ended; e.GetKind() != "cancelled" || !strings.Contains(e.GetMessage(), "stopping") {
		t.Errorf("error is %v", e)
	}
}
