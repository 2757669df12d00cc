package wire

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func whole(t *testing.T, payload []byte) *pb.AgentMessage {
	t.Helper()
	m, large, err := decodeSplit(payload)
	if err != nil {
		t.Fatal(err)
	}
	if large != nil {
		large.set(m, large.content)
	}
	return m
}

func TestAFileIsLeftInItsFrame(t *testing.T) {
	data := bytes.Repeat([]byte("content"), 10_000)
	payload := envelopeOf(t, "id", &pb.FileWriteRequest{Path: "/x", Data: data, Offset: 7, Crc32C: new(uint32(5))})
	m, large, err := decodeSplit(payload)
	if err != nil || large == nil || len(m.GetFileWrite().Data) != 0 || &large.content[0] != &payload[bytes.Index(payload, data)] {
		t.Fatal(m, large, err)
	}
	plain, err := decode(payload)
	if err != nil || !proto.Equal(whole(t, payload), plain) {
		t.Fatal("put together it is another request", err)
	}
}

// What the decoder would merge or let the last one win of is not taken apart.
func TestWhatStandsTwiceIsDecodedWhole(t *testing.T) {
	big, small := bytes.Repeat([]byte{1}, largeFieldMin), []byte{2}
	data := (&pb.FileWriteRequest{}).ProtoReflect().Descriptor().Fields().ByName("data").Number()
	inner := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = protowire.AppendBytes(protowire.AppendTag(b, data, protowire.BytesType), p)
		}
		return b
	}
	number := payloadFields()["limiquantix.agent.v1.FileWriteRequest"].Number()
	outer := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), p)
		}
		return b
	}
	other := protowire.AppendBytes(protowire.AppendTag(nil, payloadFields()["limiquantix.agent.v1.PingRequest"].Number(), protowire.BytesType), nil)
	for name, payload := range map[string][]byte{
		"data twice, large":       outer(inner(big, big)),
		"data twice, last small":  outer(inner(big, small)),
		"data twice, first small": outer(inner(small, big)),
		"request twice":           outer(inner(big), inner(small)),
		"request twice, last big": outer(inner(small), inner(big)),
		"another request behind":  append(outer(inner(big)), other...),
		"another request before":  append(bytes.Clone(other), outer(inner(big))...),
		"once":                    outer(inner(big)),
	} {
		plain, err := decode(payload)
		if err != nil {
			t.Fatal(name, err)
		}
		if got := whole(t, payload); !proto.Equal(got, plain) {
			t.Errorf("%s: it became another request", name)
		}
	}
}

func FuzzApart(f *testing.F) {
	for _, n := range []int{0, 100, largeFieldMin, 3 * largeFieldMin} {
		b, err := proto.Marshal(Wrap("id", &pb.FileWriteRequest{Path: "/x", Data: make([]byte, n), Owner: "o"}))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		if _, err := Inspect(payload); err != nil {
			return
		}
		plain, err := decode(payload)
		m, large, apartErr := decodeSplit(payload)
		if (err == nil) != (apartErr == nil) {
			t.Fatalf("%v apart, %v whole", apartErr, err)
		}
		if err != nil {
			return
		}
		if large != nil {
			large.set(m, large.content)
		}
		if !proto.Equal(m, plain) {
			t.Fatal("put together it is another message")
		}
	})
}
