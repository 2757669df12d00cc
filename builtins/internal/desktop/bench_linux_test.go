package desktop

import (
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/ipc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// BenchmarkEcho sends 10 MiB to the helper and back.
func BenchmarkEcho(b *testing.B) {
	p, err := startHelper([]string{Arg}, []string{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	l := newLink(p, &Session{User: &proc.User{}}, nil)
	go l.read()
	defer l.close(errEnded)
	in := &pb.FileWriteRequest{Data: make([]byte, 10<<20)}
	b.SetBytes(2 * 10 << 20)
	for b.Loop() {
		frame, err := ipc.Pack(0, in)
		if err != nil {
			b.Fatal(err)
		}
		reply, err := l.call(b.Context(), frame, time.Minute)
		if err != nil {
			b.Fatal(err)
		}
		if err := ipc.Decode(reply.Body, &pb.FileWriteRequest{}); err != nil {
			b.Fatal(err)
		}
	}
}
