package wire

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The head of a frame and the content after it are the frame of the whole message, whatever the fields and sizes are, and it
// is taken apart again without a copy.
func FuzzSplit(f *testing.F) {
	f.Add("/etc/motd", uint64(9), uint32(20_000), "upload", true)
	f.Add("", uint64(0), uint32(0), "", false)
	f.Add("/x", uint64(1)<<40, uint32(largeFieldMin), "a\x80", true)
	f.Fuzz(func(t *testing.T, path string, offset uint64, size uint32, upload string, reply bool) {
		data := make([]byte, size%300_000)
		for i := range data {
			data[i] = byte(i * 7)
		}
		with := func(data []byte) *pb.AgentMessage {
			if reply {
				return Wrap("the-id", &pb.FileReadResponse{Success: true, Offset: offset, Generation: path, Data: data, Error: upload})
			}
			return Wrap("the-id", &pb.FileWriteRequest{Path: path, Offset: offset, Upload: upload, Data: data, Eof: true})
		}
		m := with(nil)
		m.Session, m.Host = "the-session", offset
		for _, framing := range []Framing{Plain, QTX1} {
			head, err := AppendHead([]byte("before"), framing, m, len(data))
			if err != nil {
				if _, err := proto.Marshal(m); err == nil || string(head) != "before" {
					t.Fatalf("%q, %v", head, err)
				}
				continue
			}
			var d Decoder
			d.Feed(concat(head[len("before"):], data))
			frame, ok := d.Next()
			if !ok || !frame.Aligned || frame.Framing != framing || d.Pending() {
				t.Fatalf("%v, %v", frame, ok)
			}
			if id, err := Inspect(frame.Payload); id != "the-id" || err != nil {
				t.Fatal(id, err)
			}
			whole := with(data)
			whole.Timestamp, whole.Session, whole.Host = m.Timestamp, m.Session, m.Host
			if got, err := decode(frame.Payload); err != nil || !proto.Equal(got, whole) {
				t.Fatalf("%v is another message than %v (%v)", got, whole, err)
			}
			got, content, err := DecodeSplit(frame.Payload)
			must := len(data) >= largeFieldMin && len(path)+len(upload) < largeFieldMin
			if err != nil || !proto.Equal(got, whole) || must && content == nil {
				t.Fatalf("%v, %d bytes (%v)", got, len(content), err)
			}
			if content != nil && &content[0] != &frame.Payload[len(frame.Payload)-len(data)] {
				t.Fatal("the content was copied")
			}
		}
	})
}

// Chunks that were read into the scratch buffer of their request, or elsewhere, come as they are, many at a time.
func TestChunksOfScratchBuffers(t *testing.T) {
	content := func(id string, n int) []byte {
		return bytes.Repeat([]byte(id), n/len(id)+1)[:n]
	}
	h, _ := guest(t, func(c *Config) {
		c.Handle = func(_ context.Context, conn *Conn, id string, request proto.Message) (proto.Message, error) {
			in := request.(*pb.FileReadRequest)
			data := conn.Scratch(id, int(in.ChunkSize))
			switch {
			case in.Offset == 1 && len(data) > 0: // not from its beginning on
				data = data[1:]
			case in.Offset == 2: // from a second buffer
				data = conn.Scratch(id, int(in.ChunkSize))
			case in.Offset == 3: // not all of it
				data = data[:len(data)/2]
			}
			copy(data, content(id, len(data)))
			return &pb.FileReadResponse{Success: true, Data: data, Offset: in.Offset, Generation: id}, nil
		}
	})
	const requests = 300
	sizes := map[string]int{}
	var frames []byte
	for i := range requests {
		id, offset, size := fmt.Sprint("chunk-", i), i%4, rand.IntN(3)*10_000+rand.IntN(2)*SocketChunk/2+rand.IntN(2000)
		frames = append(frames, frameOf(Plain, envelopeOf(t, id, &pb.FileReadRequest{Offset: uint64(offset), ChunkSize: uint32(size)}))...)
		switch {
		case offset == 1:
			size = max(size-1, 0)
		case offset == 3:
			size /= 2
		}
		sizes[id] = size
	}
	var writing sync.WaitGroup
	writing.Go(func() { h.conn.Write(frames) })
	for range requests {
		m, _ := h.next()
		id := m.MessageId
		if reply := m.GetFileReadResponse(); m.Session != "the-session" || reply.GetGeneration() != id || !bytes.Equal(reply.GetData(), content(id, sizes[id])) {
			t.Fatalf("%s: %d bytes of %d, %v", id, len(reply.GetData()), sizes[id], m.ErrorDetail)
		}
	}
	writing.Wait()
}
