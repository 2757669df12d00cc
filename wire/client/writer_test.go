package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// bare hides that a channel can be interrupted.
type bare struct{ io.ReadWriteCloser }

// A request whose context ends while the channel takes nothing comes back at once, and the stream stays whole: what had begun
// is finished, and what comes after it is a frame.
func TestContextEndsABlockedWrite(t *testing.T) {
	for name, wrap := range map[string]func(net.Conn) io.ReadWriteCloser{
		"interruptible": func(c net.Conn) io.ReadWriteCloser { return c },
		"not":           func(c net.Conn) io.ReadWriteCloser { return bare{c} },
	} {
		t.Run(name, func(t *testing.T) {
			guest, host := net.Pipe()
			c := New(wrap(host), Options{})
			defer c.Close()
			defer guest.Close()
			why := errors.New("the user left")
			ctx, cancel := context.WithCancelCause(context.Background())
			failed := make(chan error, 2)
			call := func(ctx context.Context, id string, request proto.Message) {
				_, err := CallID[*pb.FileWriteResponse](ctx, c, id, request)
				failed <- err
			}
			go call(ctx, "first", &pb.FileWriteRequest{Path: "/x", Data: make([]byte, 100_000)})
			head := make([]byte, 1000)
			if _, err := io.ReadFull(guest, head); err != nil { // it is in the middle of its write
				t.Fatal(err)
			}
			go call(ctx, "second", &pb.FileWriteRequest{Path: "/y"}) // waits for its turn
			cancel(why)
			for range 2 {
				select {
				case err := <-failed:
					if !errors.Is(err, why) {
						t.Error(err)
					}
				case <-time.After(20 * time.Second):
					t.Fatal("a write holds its caller")
				}
			}
			go func() { c.Ping(context.Background()) }()
			var decoder wire.Decoder
			decoder.Feed(head)
			var seen []string
			for buf := make([]byte, 5000); ; {
				frame, ok := decoder.Next()
				if !ok {
					guest.SetReadDeadline(time.Now().Add(20 * time.Second))
					n, err := guest.Read(buf)
					if err != nil {
						t.Fatal(seen, err)
					}
					decoder.Feed(buf[:n])
					continue
				}
				m := &pb.AgentMessage{}
				if err := proto.Unmarshal(frame.Payload, m); err != nil || !frame.Aligned {
					t.Fatal("the stream is broken: ", err)
				}
				if m.GetFileWrite() != nil {
					seen = append(seen, m.MessageId)
				}
				if m.GetPing() != nil {
					break
				}
			}
			if len(seen) != 1 || seen[0] != "first" {
				t.Error(seen)
			}
		})
	}
}

// A closed connection is not waited for, whoever writes.
func TestCloseEndsABlockedWrite(t *testing.T) {
	guest, host := net.Pipe()
	defer guest.Close()
	c := New(bare{host}, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() {
		_, err := Call[*pb.FileWriteResponse](ctx, c, &pb.FileWriteRequest{})
		failed <- err
	}()
	if _, err := io.ReadFull(guest, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-failed
	closed := make(chan struct{})
	go func() { c.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatal("Close waits for a write that cannot end")
	}
}

// No copy has more than eight chunks under way.
func TestAtMostEightChunksAhead(t *testing.T) {
	var now, most atomic.Int32
	content := bytes.Repeat([]byte("x"), 40*pullChunk)
	c, _ := agent(t, func(_ context.Context, request proto.Message) (proto.Message, error) {
		for n := now.Add(1); ; {
			if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		defer now.Add(-1)
		time.Sleep(2 * time.Millisecond) // the chunks that follow come meanwhile
		if read, ok := request.(*pb.FileReadRequest); ok {
			at := min(int(read.Offset), len(content))
			end := min(at+int(read.ChunkSize), len(content))
			return &pb.FileReadResponse{Success: true, Data: content[at:end], Offset: read.Offset, TotalSize: uint64(len(content)), Eof: end == len(content)}, nil
		}
		return &pb.FileWriteResponse{Success: true}, nil
	})
	if _, err := c.Push(within(t, 60*time.Second), "/x", bytes.NewReader(make([]byte, 40*pushChunk)), PushOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := most.Swap(0); n < 2 || n > 8 {
		t.Errorf("%d chunks of a push were under way", n)
	}
	var out bytes.Buffer
	if _, err := c.Pull(within(t, 60*time.Second), "/x", &out, PullOptions{}); err != nil || !bytes.Equal(out.Bytes(), content) {
		t.Fatal(out.Len(), err)
	}
	if n := most.Load(); n < 2 || n > 8 {
		t.Errorf("%d chunks of a pull were under way", n)
	}
}

// A channel that ends in the middle of a write is told in words of its own, and counts as gone.
func TestEndOfTheChannelInAWrite(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if noSockets(err) {
		t.Skip("this system has no unix sockets, as Wine")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	guest, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	guest.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, ctx := range []context.Context{ctx, context.Background()} {
		for name, channel := range map[string]io.Writer{"interruptible": host, "not": bare{host}} {
			err := newWriter(channel).write(ctx, []byte("x"))
			if !Gone(err) || !strings.HasPrefix(err.Error(), "the connection to the agent ended: ") || strings.Contains(err.Error(), "->") {
				t.Error(name, err)
			}
		}
	}
}
