package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func envelopeOf(t testing.TB, id string, payload proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(Wrap(id, payload))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func frameOf(f Framing, payload []byte) []byte {
	return append(appendHeader(nil, f, len(payload)), payload...)
}

// all feeds a stream in the given pieces and gives the ids of what is found, with a * after those that are not aligned.
func all(d *Decoder, stream []byte, piece int) []string {
	var ids []string
	for len(stream) > 0 {
		n := min(piece, len(stream))
		d.Feed(stream[:n])
		stream = stream[n:]
		for {
			frame, ok := d.Next()
			if !ok {
				break
			}
			id, err := Inspect(frame.Payload)
			switch {
			case err != nil:
				id = "bad"
				d.Resync()
			case !frame.Aligned:
				id += "*"
			}
			ids = append(ids, id)
		}
	}
	return ids
}

func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestDecoderFindsFrames(t *testing.T) {
	a := envelopeOf(t, "a-request", &pb.PingRequest{Sequence: 7})
	b := envelopeOf(t, "b-request", &pb.ExecuteRequest{Command: "true"})
	plainA, plainB := frameOf(Plain, a), frameOf(Plain, b)
	qtxA, qtxB := frameOf(QTX1, a), frameOf(QTX1, b)
	tooLong := binary.BigEndian.AppendUint32(nil, MaxFrame+1)
	for _, c := range []struct {
		name   string
		stream []byte
		want   string
	}{
		{"plain", concat(plainA, plainB), "[a-request b-request]"},
		{"qtx1", concat(qtxA, qtxB), "[a-request b-request]"},
		{"both framings mixed", concat(plainA, qtxB, plainA), "[a-request b-request a-request]"},
		{"an orphaned magic", concat([]byte(magic), qtxA, qtxB), "[a-request b-request]"},
		{"many orphaned magics", concat([]byte(magic+magic+magic), qtxA), "[a-request]"},
		{"garbage", concat([]byte("garbage, no header"), plainA, plainB), "[a-request* b-request*]"},
		{"garbage before qtx1", concat([]byte("\xff\xfe QT QTX"), qtxA), "[a-request*]"},
		{"a zero-length frame", concat(make([]byte, 4), plainA), "[a-request*]"},
		{"zeros out of step", concat(make([]byte, 7), plainA), "[a-request*]"},
		{"a zero-length qtx1 frame", concat([]byte(magic), make([]byte, 4), qtxA), "[a-request*]"},
		{"a length over the bound", concat(tooLong, plainA), "[a-request*]"},
		{"a qtx1 length over the bound", concat([]byte(magic), tooLong, qtxA), "[a-request*]"},
		{"a frame whose payload is no envelope", concat(frameOf(Plain, []byte("\xff\xff\xff\xff")), plainA), "[bad a-request*]"},
	} {
		for _, piece := range []int{1, 2, 3, 5, 7, 1 << 20} {
			var d Decoder
			if got := fmt.Sprint(all(&d, c.stream, piece)); got != c.want {
				t.Errorf("%s in pieces of %d: %s; want %s", c.name, piece, got, c.want)
			}
		}
	}
}

// A pinned framing does not see the other one.
func TestPinnedFraming(t *testing.T) {
	a := envelopeOf(t, "a-request", &pb.PingRequest{})
	d := Decoder{Accept: QTX1}
	if got := fmt.Sprint(all(&d, concat(frameOf(Plain, a), frameOf(QTX1, a)), 1000)); got != "[a-request*]" {
		t.Error(got)
	}
	d = Decoder{Accept: Plain}
	if got := fmt.Sprint(all(&d, concat(frameOf(QTX1, a), frameOf(Plain, a)), 1000)); got != "[a-request*]" && got != "[a-request* a-request*]" {
		t.Error(got)
	}
}

func TestLargestFrameIsAccepted(t *testing.T) {
	var d Decoder
	payload := make([]byte, MaxFrame)
	d.Feed(frameOf(Plain, payload))
	frame, ok := d.Next()
	if !ok || len(frame.Payload) != MaxFrame {
		t.Error("a payload of 16 MiB was not accepted")
	}
}

// After a false header the first frame that comes after a silence is delivered, and is trusted again.
func TestSilenceEndsAFalseHeader(t *testing.T) {
	a := frameOf(Plain, envelopeOf(t, "a-request", &pb.PingRequest{}))
	for _, header := range [][]byte{
		binary.BigEndian.AppendUint32(nil, 1<<20),
		append([]byte(magic), 0, 0x10, 0, 0),
	} {
		var d Decoder
		if got := all(&d, concat(header, []byte("ten bytes."), a), 1000); got != nil {
			t.Errorf("found %q inside a payload that is not complete", got)
		}
		d.Silence()
		if got := fmt.Sprint(all(&d, a, 1000)); got != "[a-request]" {
			t.Error(got)
		}
	}
}

// What a decoder holds does not grow with what passed through it.
func TestDecoderMemoryIsBounded(t *testing.T) {
	var d Decoder
	frame := frameOf(Plain, envelopeOf(t, "x", &pb.FileWriteRequest{Data: make([]byte, 60000)}))
	for range 1000 {
		if n := len(all(&d, frame, 4096)); n != 1 {
			t.Fatalf("%d frames", n)
		}
	}
	if cap(d.buf) > 1<<20 {
		t.Errorf("holds %d bytes", cap(d.buf))
	}
}

// Whatever comes first and however it is cut: a frame after a silence is delivered, aligned; and after bytes that hold
// no header, at once. No frame that was hidden in another's payload is aligned.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte("garbage"), uint8(3), false)
	f.Add([]byte{0, 0, 0, 9, 0x0a, 3, 'a', 'b', 'c', 1, 1, 1, 1}, uint8(1), true)
	f.Add([]byte(magic+"\x00\x00\x10\x00"), uint8(200), true)
	f.Add(concat([]byte(magic+magic), make([]byte, 9)), uint8(2), false)
	f.Fuzz(func(t *testing.T, noise []byte, piece uint8, qtx bool) {
		framing := Plain
		if qtx {
			framing = QTX1
		}
		want := frameOf(framing, envelopeOf(t, "wanted-request", &pb.PingRequest{Sequence: 9}))
		var d Decoder
		all(&d, noise, int(piece)+1)
		if len(d.buf)-d.head > MaxFrame+headerSpace {
			t.Fatalf("holds %d bytes", len(d.buf)-d.head)
		}
		d.Silence()
		if got := fmt.Sprint(all(&d, want, int(piece)+1)); got != "[wanted-request]" {
			t.Fatalf("after a silence: %s", got)
		}
		// Bytes of ff hold no header and end whatever the noise began, unless it waits for a payload.
		var e Decoder
		quiet := bytes.Repeat([]byte{0xff}, len(noise)+8)
		if got := fmt.Sprint(all(&e, concat(quiet, want), int(piece)+1)); got != "[wanted-request*]" {
			t.Fatalf("after garbage: %s", got)
		}
		// The same frame inside the payload of a frame that is never completed, and of one that is.
		inside := concat(appendHeader(nil, framing, len(noise)+len(want)+1), noise, want)
		var g Decoder
		for _, id := range all(&g, inside, int(piece)+1) {
			if id == "wanted-request" {
				t.Fatal("a frame inside another's payload was taken for one of the stream")
			}
		}
	})
}

// Random streams in which whole frames stand between garbage: nothing is invented, and nothing that is aligned was not
// sent as a frame.
func TestRandomStreams(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var stream []byte
		for n := range 1 + r.IntN(8) {
			if r.IntN(2) == 0 {
				noise := make([]byte, r.IntN(300))
				for i := range noise {
					noise[i] = byte(r.Uint32())
				}
				stream = append(stream, noise...)
			}
			stream = append(stream, frameOf(Framing(1+r.IntN(2)), envelopeOf(t, fmt.Sprintf("request-%d", n), &pb.PingRequest{}))...)
		}
		whole, bits := fmt.Sprint(all(&Decoder{}, stream, 1<<20)), fmt.Sprint(all(&Decoder{}, stream, 1+r.IntN(9)))
		if whole != bits {
			t.Fatalf("the pieces matter: %s, %s", whole, bits)
		}
	}
}
