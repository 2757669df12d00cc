package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The laws of the stream, each over any bytes in any pieces. Their seeds run with the other tests; with -fuzz each goes on by
// itself.

// cut returns a stream in pieces whose sizes come from a seed: from one byte to 64 KiB, as reads do.
func cut(stream []byte, seed uint32, each func(piece []byte)) {
	for len(stream) > 0 {
		seed = seed*1664525 + 1013904223
		n := min(len(stream), 1+int(seed>>16)%(1<<(seed%17)))
		each(stream[:n])
		stream = stream[n:]
	}
}

// found is what a decoder gives for a stream, each payload with its framing and whether it is trusted.
func found(d *Decoder, stream []byte, seed uint32) (frames []string) {
	cut(stream, seed, func(piece []byte) {
		d.Feed(piece)
		for frame, ok := d.Next(); ok; frame, ok = d.Next() {
			frames = append(frames, fmt.Sprintf("%v %v %x", frame.Framing, frame.Aligned, frame.Payload))
		}
	})
	return frames
}

// What decodes is encoded to the same bytes again, and those decode to the same: an envelope that is passed on is not changed.
func FuzzReencode(f *testing.F) {
	for _, g := range golden(f) {
		f.Add(g.payload)
	}
	f.Add([]byte{0x0a, 2, 0xff, 0xfe})
	f.Add(append(envelopeOf(f, "a", nil), 0xc2, 0x02, 0))
	f.Fuzz(func(t *testing.T, payload []byte) {
		m, err := decode(payload)
		if err != nil {
			return
		}
		for _, framing := range []Framing{Plain, QTX1} {
			frame, err := AppendMessage(nil, framing, m)
			if err != nil {
				t.Fatal(err)
			}
			var d Decoder
			d.Feed(frame)
			got, ok := d.Next()
			if proto.Size(m) == 0 {
				if ok { // an envelope without any field has no bytes, and no frame carries that
					t.Fatal("an empty frame was delivered")
				}
				continue
			}
			if !ok || got.Framing != framing || !got.Aligned {
				t.Fatalf("%x is found as %v, %v", frame, got, ok)
			}
			again, err := decode(got.Payload)
			if err != nil || !proto.Equal(m, again) {
				t.Fatalf("%v became %v (%v)", m, again, err)
			}
		}
	})
}

// How a stream is cut does not matter.
func FuzzPieces(f *testing.F) {
	a := frameOf(Plain, envelopeOf(f, "a-request", &pb.PingRequest{Sequence: 3}))
	b := frameOf(QTX1, envelopeOf(f, "b-request", &pb.FileWriteRequest{Path: "/x", Data: a}))
	f.Add(concat(a, b, a), uint32(1))
	f.Add(concat([]byte("garbage"), a, []byte(magic), b, make([]byte, 5), a), uint32(2))
	f.Add(concat(a[:9], b, a), uint32(3))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint32) {
		var whole, pieces Decoder
		want, got := found(&whole, stream, 17<<16|16), found(&pieces, stream, seed)
		if fmt.Sprint(want) != fmt.Sprint(got) || whole.Skipped() != pieces.Skipped() {
			t.Fatalf("%q in one way, %q in another", want, got)
		}
	})
}

// headless makes bytes that no header can begin in and that end whatever a header began.
func headless(noise []byte) []byte {
	quiet := bytes.Clone(noise)
	for i, c := range quiet {
		if c <= 1 || c == magic[0] {
			quiet[i] = 0xff
		}
	}
	return quiet
}

// After garbage that holds no header the next frame is delivered at once, with its last byte.
func FuzzAfterGarbage(f *testing.F) {
	f.Add([]byte("garbage, no header"), uint32(1), true)
	f.Add(bytes.Repeat([]byte{0xff}, 70_000), uint32(99), false)
	f.Add([]byte{}, uint32(0), false)
	f.Fuzz(func(t *testing.T, noise []byte, seed uint32, qtx bool) {
		framing := Plain
		if qtx {
			framing = QTX1
		}
		payload := envelopeOf(t, "wanted-request", &pb.PingRequest{Sequence: 9})
		want := fmt.Sprintf("[%v %v %x]", framing, len(noise) == 0, payload)
		var d Decoder
		if got := fmt.Sprint(found(&d, concat(headless(noise), frameOf(framing, payload)), seed)); got != want {
			t.Fatalf("%s; want %s", got, want)
		}
		if d.Skipped() != uint64(len(noise)) {
			t.Fatalf("%d bytes skipped of %d", d.Skipped(), len(noise))
		}
	})
}

// After any bytes, a false header among them, the first frame after a silence is delivered, trusted. What the bytes before it
// may have hidden is found, and never trusted.
func FuzzAfterSilence(f *testing.F) {
	hidden := frameOf(Plain, envelopeOf(f, "hidden", &pb.ExecuteRequest{Command: "x"}))
	f.Add(binary.BigEndian.AppendUint32(nil, 1<<20), uint32(1), true)
	f.Add(concat(binary.BigEndian.AppendUint32(nil, MaxFrame), hidden, hidden), uint32(2), false)
	f.Add(concat([]byte(magic), []byte{0, 0x10, 0, 0}, hidden), uint32(3), true)
	f.Fuzz(func(t *testing.T, noise []byte, seed uint32, qtx bool) {
		framing := Plain
		if qtx {
			framing = QTX1
		}
		payload := envelopeOf(t, "wanted-request", &pb.PingRequest{Sequence: 9})
		var d Decoder
		found(&d, noise, seed)
		for frame, ok := d.Salvage(); ok; frame, ok = d.Salvage() {
			if frame.Aligned {
				t.Fatalf("%x was found in a frame that was given up, and is trusted", frame.Payload)
			}
		}
		d.Silence()
		if d.Pending() {
			t.Fatal("bytes outlive a silence")
		}
		if got, want := fmt.Sprint(found(&d, frameOf(framing, payload), seed)), fmt.Sprintf("[%v true %x]", framing, payload); got != want {
			t.Fatalf("%s; want %s", got, want)
		}
	})
}

// What a decoder holds is bounded by one frame, whatever comes.
func FuzzMemory(f *testing.F) {
	f.Add(concat(binary.BigEndian.AppendUint32(nil, MaxFrame), []byte("x")), uint32(1), uint16(300))
	f.Add([]byte(magic+"\x00\xff\xff\xff"), uint32(2), uint16(500))
	f.Add([]byte("garbage"), uint32(3), uint16(1000))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint32, times uint16) {
		var d Decoder
		for range min(int(times), 1+(24<<20)/max(len(stream), 1)) { // enough to complete the largest frame once
			found(&d, stream, seed)
			if held := len(d.buf) - d.head; held > MaxFrame+headerSpace+len(stream) || cap(d.buf) > 4*MaxFrame {
				t.Fatalf("holds %d bytes in %d", held, cap(d.buf))
			}
		}
	})
}

// A file that is pushed may hold any frames; its chunks may follow anything, and the host may have been cut off before:
// no frame that was inside another one's payload is trusted, unless the bytes before it are exactly what the rest of a frame
// would be. For that one exception see TestTheOneHiddenFrameThatLooksAligned.
func FuzzHiddenFrames(f *testing.F) {
	f.Add([]byte("#!/bin/sh\n"), []byte(" the end"), uint16(0), uint32(1), true)
	f.Add([]byte{}, []byte{}, uint16(7), uint32(2), false)
	f.Add([]byte(magic+magic), []byte{0, 0, 0, 9}, uint16(20), uint32(3), true)
	f.Add(bytes.Repeat([]byte{0}, 100), []byte{1}, uint16(3), uint32(4), false)
	f.Fuzz(func(t *testing.T, before, behind []byte, lost uint16, seed uint32, qtx bool) {
		framing := Plain
		if qtx {
			framing = QTX1
		}
		hidden := concat(
			frameOf(Plain, envelopeOf(t, "hidden-plain", &pb.ExecuteRequest{Command: "x"})),
			frameOf(QTX1, envelopeOf(t, "hidden-qtx1", &pb.ExecuteRequest{Command: "x"})))
		push := frameOf(framing, envelopeOf(t, "push", &pb.FileWriteRequest{Path: "/x", Data: concat(before, hidden, hidden, behind)}))
		trusted := func(d *Decoder, stream []byte) (ids []string) {
			for _, id := range all(d, stream, 1+int(seed)%5000) {
				if id == "hidden-plain" || id == "hidden-qtx1" {
					ids = append(ids, id)
				}
			}
			return ids
		}
		var whole Decoder
		if got := trusted(&whole, concat(push, push)); got != nil {
			t.Fatalf("%q inside a whole push are trusted", got)
		}
		var garbled Decoder // a byte that begins no header, and then a push whose own beginning is lost
		if got := trusted(&garbled, concat([]byte{0xff}, push[min(int(lost), len(push)):], push)); got != nil {
			t.Fatalf("%q behind a lost beginning are trusted", got)
		}
	})
}

// Where a host was cut off in the middle of a frame and the next one's bytes complete it exactly, in such a way that it
// decodes, and a frame hidden in the next host's file begins at just that byte, no decoder can tell it from a frame of the
// stream. A connection can, where the host echoes the session: a hidden frame does not know it. A host that does not is
// protected by a silence alone, or by being seen to leave.
func TestTheOneHiddenFrameThatLooksAligned(t *testing.T) {
	hidden := frameOf(Plain, envelopeOf(t, "hidden", &pb.ExecuteRequest{Command: "x"}))
	push := func(id string, data []byte) []byte {
		m := Wrap(id, &pb.FileWriteRequest{Path: "/x", Data: data})
		m.Session = "the-session"
		frame, err := AppendMessage(nil, Plain, m)
		if err != nil {
			t.Fatal(err)
		}
		return frame
	}
	// The rest of a frame begins with the bytes that the first one lacks, so that it decodes: no session after the data there.
	first := frameOf(Plain, envelopeOf(t, "first", &pb.FileWriteRequest{Path: "/x", Data: make([]byte, 1000)}))
	second := push("second", hidden)
	stream := concat(first[:len(first)-bytes.Index(second, hidden)], second)
	var d Decoder
	if got := fmt.Sprint(all(&d, stream, 1<<20)); !strings.HasPrefix(got, "[first hidden") || strings.HasPrefix(got, "[first hidden*") {
		t.Error(got)
	}
	h, _ := guest(t, nil)
	h.write(concat(push("before", nil), stream))
	if m := h.answer("hidden"); m.ErrorDetail.GetCode() != "uncertain" {
		t.Error(m)
	}
}
