package wire

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// chunkMessages are requests for chunks and replies to them, as they are sent.
func chunkMessages(random *rand.Rand) []proto.Message {
	data := bytes.Repeat([]byte{7}, largeFieldMin+random.IntN(100))
	text := func(n int) string { return strings.Repeat("é", random.IntN(n)) }
	number := func() uint32 { return random.Uint32() >> random.IntN(32) }
	return []proto.Message{
		&pb.FileReadRequest{Path: "/" + text(9), Offset: random.Uint64(), Length: random.Uint64(), ChunkSize: number(), Generation: text(40)},
		&pb.FileWriteRequest{
			Path: text(9), Data: data, Offset: random.Uint64(), Mode: number(), CreateParents: true, ChunkNumber: number(),
			TotalChunks: number(), Crc32C: new(number()), Upload: text(9), Separate: random.IntN(2) == 0,
		},
		&pb.FileWriteRequest{Path: "/x", Data: data, Append: true, Eof: true, Owner: "o", Group: "g", Sha256: "0"},
		&pb.FileReadResponse{
			Success: true, Data: data, Eof: random.IntN(2) == 0, TotalSize: random.Uint64(), Offset: random.Uint64(), ChunkNumber: number(),
			Mode: number(), ModifiedAt: Wrap("", nil).Timestamp, Generation: text(40), Crc32C: new(number()),
		},
		&pb.FileReadResponse{Data: data[:9], Error: text(9)},
		&pb.FileWriteResponse{Success: true, BytesWritten: random.Uint64(), ChunkNumber: number()},
		&pb.PingRequest{Sequence: random.Uint64()},
	}
}

// The decoders of chunks make what the decoder of all messages makes, of whatever bytes, or leave it to that.
func TestChunksAreDecodedAlike(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var texts chunkTexts
	decoded := map[string]int{}
	for range 3000 {
		for _, payload := range chunkMessages(random) {
			m := Wrap(fmt.Sprint(random.Uint32()), payload)
			m.Session, m.Host, m.TimeoutMs = "s"+fmt.Sprint(random.IntN(3)), random.Uint64()>>random.IntN(64), random.Uint64()>>random.IntN(65)
			b, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			head := min(len(b), 120)
			switch random.IntN(4) {
			case 0: // a damaged byte
				b[random.IntN(head)] ^= byte(1 << random.IntN(8))
			case 1: // a field that is not known, or stands twice
				b = protowire.AppendTag(b, protowire.Number([]int{1, 2, 13, 52, 250, 251, 300}[random.IntN(7)]), protowire.BytesType)
				b = protowire.AppendString(b, "x")
			}
			var got *pb.AgentMessage
			if c := texts.decodeChunk(b); c != nil {
				got = &c.envelope.message
				if large := c.large(); large != nil {
					large.set(got, large.content)
				}
			} else if got, _ = texts.decodeReply(b); got == nil {
				continue
			}
			want := &pb.AgentMessage{}
			if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, want); err != nil || !proto.Equal(got, want) {
				t.Fatalf("%.300v\n%.300v, %v", got, want, err)
			}
			decoded[fmt.Sprintf("%T", payload)]++
		}
	}
	for _, kind := range []string{"*pb.FileReadRequest", "*pb.FileWriteRequest", "*pb.FileReadResponse", "*pb.FileWriteResponse"} {
		if decoded[kind] < 1500 {
			t.Errorf("of %s %d were decoded", kind, decoded[kind])
		}
	}
	if decoded["*pb.PingRequest"] > 0 {
		t.Error("a ping is no chunk")
	}
}

// A text that is not UTF-8 is left to the decoder of all messages, which refuses it, each time that it comes.
func TestChunkWithATextThatIsNotUTF8(t *testing.T) {
	read := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "/\xff")
	payload := protowire.AppendString(protowire.AppendTag(nil, idField, protowire.BytesType), "1")
	payload = protowire.AppendBytes(protowire.AppendTag(payload, fileReadField, protowire.BytesType), read)
	if err := proto.Unmarshal(payload, &pb.AgentMessage{}); err == nil {
		t.Fatal("it is decoded")
	}
	var texts chunkTexts
	for n := range 3 {
		if c := texts.decodeChunk(payload); c != nil {
			t.Errorf("%d: %q", n, c.read.Path)
		}
	}
}
