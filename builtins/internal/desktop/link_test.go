package desktop

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/ipc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// connected returns a link, and the end of the helper.
func connected(t *testing.T) (*link, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	kill := sync.OnceFunc(func() { theirs.Close(); close(done) })
	p := &process{channel: ours, done: done, how: func() string { return "killed" }, kill: kill}
	l := newLink(p, &Session{User: &proc.User{}}, map[string]event{})
	var reader sync.WaitGroup
	reader.Go(l.read)
	t.Cleanup(func() {
		l.close(errEnded)
		reader.Wait()
		kill()
	})
	return l, theirs
}

func send(t *testing.T, c net.Conn, frame *pb.SessionFrame) {
	t.Helper()
	if err := ipc.Write(c, frame); err != nil {
		t.Fatal(err)
	}
}

func ask(ctx context.Context, l *link, limit time.Duration) <-chan error {
	answer := make(chan error, 1)
	go func() {
		frame, err := ipc.Pack(0, &pb.PingRequest{})
		if err == nil {
			_, err = l.call(ctx, frame, limit)
		}
		answer <- err
	}()
	return answer
}

// receive returns the next request to the helper.
func receive(t *testing.T, c net.Conn) *pb.SessionFrame {
	t.Helper()
	frame, err := ipc.Read(c)
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

func ended(t *testing.T, l *link) {
	t.Helper()
	select {
	case <-l.process.done:
	case <-time.After(20 * time.Second):
		t.Fatal("the helper was not ended")
	}
}

func TestAReplyThatNobodyAskedForEndsTheHelper(t *testing.T) {
	l, c := connected(t)
	send(t, c, &pb.SessionFrame{Id: 7})
	ended(t, l)
	if why := l.how(); !strings.Contains(why, "a reply to no request (7)") {
		t.Error(why)
	}
}

// A reply that comes after its call was given up is no fault, once.
func TestALateReply(t *testing.T) {
	l, c := connected(t)
	ctx, cancel := context.WithCancel(t.Context())
	answer := ask(ctx, l, time.Minute)
	late := receive(t, c)
	cancel()
	if err := <-answer; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	send(t, c, &pb.SessionFrame{Id: late.Id})
	answer = ask(t.Context(), l, time.Minute)
	send(t, c, &pb.SessionFrame{Id: receive(t, c).Id})
	if err := <-answer; err != nil {
		t.Errorf("the call after it: %v", err)
	}
	go l.tell(&pb.PingRequest{}) // its reply is expected as well
	send(t, c, &pb.SessionFrame{Id: receive(t, c).Id})
	send(t, c, &pb.SessionFrame{Id: late.Id})
	ended(t, l)
}

// A helper that answers none of the calls that were given up is ended.
func TestCallsThatWereGivenUpAreBounded(t *testing.T) {
	l, c := connected(t)
	for range maxGivenUp + 1 {
		ctx, cancel := context.WithCancel(t.Context())
		answer := ask(ctx, l, time.Minute)
		receive(t, c)
		cancel()
		<-answer
	}
	ended(t, l)
}

// content is a channel on which all has come already.
type content struct{ *strings.Reader }

func (content) Write(b []byte) (int, error)      { return len(b), nil }
func (content) Close() error                     { return nil }
func (content) SetWriteDeadline(time.Time) error { return nil }

// What nobody asked for is read by its bytes, also those that no message has.
func TestBytesThatNobodyAskedForAreBounded(t *testing.T) {
	body := protowire.AppendBytes(protowire.AppendTag(nil, 1000, protowire.BytesType), make([]byte, maxUnasked))
	frame := string(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	in := strings.NewReader(strings.Repeat(frame, 8))
	l := newLink(&process{channel: content{in}}, &Session{}, nil)
	l.close(errEnded) // no wait for the end of the second
	if err := l.readSecond(&counter{r: in}); err != nil {
		t.Fatal(err)
	}
	if left := in.Len() / len(frame); left != 7 {
		t.Errorf("%d of 8 frames are left", left)
	}
}

// A helper that reads nothing holds up no call beyond its own limit, or its end.
func TestAHelperThatReadsNothing(t *testing.T) {
	l, c := connected(t)
	first := ask(t.Context(), l, 10*time.Minute)
	if _, err := c.Read(make([]byte, 1)); err != nil { // it is being written
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	second := ask(ctx, l, 10*time.Minute)
	cancel()
	select {
	case err := <-second:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("a call that was given up waits")
	}
	if err := <-ask(t.Context(), l, time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call with a limit: %v", err)
	}
	ended(t, l)
	if err := <-first; fault.Code(err) != "busy" {
		t.Errorf("the call that was being written: %v", err)
	}
}

func TestErrorsOfAHelperAreShort(t *testing.T) {
	l, c := connected(t)
	answer := ask(t.Context(), l, time.Minute)
	long := strings.Repeat("é", 1<<20)
	send(t, c, &pb.SessionFrame{Id: receive(t, c).Id, Error: &pb.ErrorDetail{
		Code: "busy", Message: long, Op: long, Object: long, Details: map[string]string{"a": long},
	}})
	err := <-answer
	var remote *fault.Remote
	if !errors.As(err, &remote) || fault.Code(err) != "busy" || len(err.Error()) > maxErrorText || len(err.Error()) < maxErrorText-8 {
		t.Fatalf("%.100v", err)
	}
	if d := remote.Detail; len(d.Op) > maxErrorText || len(d.Object) > maxErrorText || len(d.Details) != 0 {
		t.Errorf("%d, %d bytes and %d details", len(d.Op), len(d.Object), len(d.Details))
	}
}
