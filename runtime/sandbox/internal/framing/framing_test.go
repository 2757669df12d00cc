package framing_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/framing"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func newCall(args ...*pb.LuaValue) *pb.RunnerMessage {
	return &pb.RunnerMessage{Kind: &pb.RunnerMessage_Call{Call: &pb.RunnerCall{Name: "file.read", Args: args, Line: 7}}}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	var stream bytes.Buffer
	messages := []*pb.RunnerMessage{
		newCall(), newCall(&pb.LuaValue{Kind: &pb.LuaValue_String_{String_: make([]byte, 1<<20)}}),
		{Kind: &pb.RunnerMessage_Start{Start: &pb.RunnerStart{
			Secrets: map[string]string{"a": "b"}, Modules: map[string][]byte{"m": {0}}, Unsupported: []string{"x", "y"}, Describe: true,
		}}},
		{Kind: &pb.RunnerMessage_Progress{Progress: &pb.RunnerProgress{Fraction: proto.Float64(0)}}},
		{Kind: &pb.RunnerMessage_Done{Done: &pb.RunnerDone{Declaration: &pb.ScriptDeclaration{Timeout: 1, Confirm: proto.Float64(2)}}}},
	}
	for _, m := range messages {
		frame, err := framing.Encode(m, framing.MaxToRunner)
		if err != nil {
			t.Fatal(err)
		}
		stream.Write(frame)
	}
	r := framing.NewReader(&stream, framing.MaxToRunner)
	for _, want := range messages {
		if got, err := r.Read(); err != nil || !proto.Equal(got, want) {
			t.Errorf("read %v, %v, want %v", got, err, want)
		}
	}
	if _, err := r.Read(); err != io.EOF {
		t.Errorf("the end returns %v", err)
	}
}

func TestBounds(t *testing.T) {
	if _, err := framing.Encode(newCall(&pb.LuaValue{Kind: &pb.LuaValue_String_{String_: make([]byte, framing.MaxBytes)}}), framing.MaxToRunner); !errors.Is(err, framing.ErrTooLarge) {
		t.Errorf("a message over the limit returns %v", err)
	}
	for _, n := range []int{99, 100} { // and the call itself
		m := newCall(slices.Repeat([]*pb.LuaValue{{}}, n)...)
		_, err := framing.Encode(m, 100)
		if over := errors.Is(err, framing.ErrTooLarge); over != (n == 100) {
			t.Errorf("writing %d elements returns %v", n, err)
		}
		frame, err := framing.Encode(m, 1000)
		if err != nil {
			t.Fatal(err)
		}
		_, err = framing.NewReader(bytes.NewReader(frame), 100).Read()
		if over := errors.Is(err, framing.ErrTooLarge); over != (n == 100) {
			t.Errorf("reading %d elements returns %v", n, err)
		}
	}
	frame, err := framing.Encode(newCall(), 10)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := framing.NewReader(bytes.NewReader(frame[:len(frame)-1]), 10).Read(); err != io.ErrUnexpectedEOF {
		t.Errorf("half a message returns %v", err)
	}
}

// FuzzRead checks the law that what is read and written again is read as the same, and that everything else is malformed
// or cut off.
func FuzzRead(f *testing.F) {
	frame, err := framing.Encode(newCall(&pb.LuaValue{Kind: &pb.LuaValue_Table{Table: &pb.LuaTable{List: true}}}), 10)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame)
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := framing.NewReader(bytes.NewReader(b), 1000).Read()
		if err != nil {
			if !errors.Is(err, framing.ErrMalformed) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("error is %v", err)
			}
			return
		}
		again, err := framing.Encode(m, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := framing.NewReader(bytes.NewReader(again), 1000).Read(); err != nil || !proto.Equal(m, second) {
			t.Errorf("%v comes back as %v, %v", m, second, err)
		}
	})
}
