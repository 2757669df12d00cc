package ipc

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// messages have large bytes at several depths, alone and in lists, and what is small before and after them.
func messages() []proto.Message {
	data := func(size int, b byte) []byte { return bytes.Repeat([]byte{b}, size) }
	return []proto.Message{
		&pb.ClipReadReply{},
		&pb.ClipReadReply{Content: &pb.ClipContent{Kind: "png", Data: data(1<<20, 1)}, Offered: []string{"png", "text"}},
		&pb.ClipReadReply{Content: &pb.ClipContent{Kind: "text", Data: data(large-1, 2)}},
		&pb.ClipReadReply{Content: &pb.ClipContent{Kind: "text", Data: data(large, 3)}},
		&pb.ClipWriteRequest{Primary: true, Contents: []*pb.ClipContent{
			{Kind: "text", Data: data(3, 4)}, {Kind: "html", Data: data(large, 5)}, {Kind: "png", Data: data(7, 6)},
			{Kind: "files", Data: data(2*large, 7)},
		}},
		&pb.FileWriteRequest{Path: "p", Data: data(large+1, 8), Offset: 9},
		&pb.ExecuteRequest{Command: string(data(large, 'a')), Args: []string{"b", string(data(large, 'c'))}},
		&pb.RunResult{Stdout: data(large, 1), Stderr: data(large, 2)},
	}
}

// What Decode makes of bytes is what proto.Unmarshal makes of them, also where a field stands twice.
func TestDecodeIsUnmarshal(t *testing.T) {
	for _, first := range messages() {
		for _, second := range messages() {
			b, err := proto.Marshal(first)
			if err != nil {
				t.Fatal(err)
			}
			if Name(first) == Name(second) {
				if b, err = (proto.MarshalOptions{}).MarshalAppend(b, second); err != nil {
					t.Fatal(err)
				}
			}
			want, got := first.ProtoReflect().New().Interface(), first.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(b, want); err != nil {
				t.Fatal(err)
			}
			if err := Decode(b, got); err != nil || !proto.Equal(got, want) {
				t.Errorf("%s and %s: %v", Name(first), Name(second), err)
			}
			for _, cut := range []int{1, 2, len(b) / 2} {
				if len(b) < 3 {
					continue
				}
				part := b[:len(b)-cut]
				wrong := proto.Unmarshal(part, first.ProtoReflect().New().Interface())
				if err := Decode(part, first.ProtoReflect().New().Interface()); (err == nil) != (wrong == nil) {
					t.Errorf("%s, cut by %d: %v, and %v of proto.Unmarshal", Name(first), cut, err, wrong)
				}
			}
		}
	}
}

func TestFramesGoThereAndBack(t *testing.T) {
	var channel bytes.Buffer
	var sent []*pb.SessionFrame
	for i, message := range messages() {
		frame, err := Pack(uint64(i), message)
		if err != nil {
			t.Fatal(err)
		}
		frame.TimeoutMs = uint32(100 * i)
		sent = append(sent, frame)
	}
	sent = append(sent, &pb.SessionFrame{Id: 7, Error: &pb.ErrorDetail{Code: "busy", Message: "words"}}, &pb.SessionFrame{})
	for _, frame := range sent {
		if err := Write(&channel, frame); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range sent {
		got, err := Read(&channel)
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("frame %d: %v", want.Id, err)
		}
	}
	if channel.Len() != 0 {
		t.Errorf("%d bytes are left", channel.Len())
	}
	for _, size := range []int{MaxFrame - 5, MaxFrame} { // a body of that size, and what stands before it
		channel.Reset()
		err := Write(&channel, &pb.SessionFrame{Body: make([]byte, size)})
		if fits := size < MaxFrame; fits != (err == nil) || !fits && (fault.Code(err) != "too_large" || channel.Len() != 0) {
			t.Errorf("a body of %d bytes: %v, and %d bytes were written", size, err, channel.Len())
		}
	}
}
