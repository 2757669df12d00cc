package desktop

import (
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/ipc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// BenchmarkHelper sends 10 MiB to the helper, or from it.
func BenchmarkHelper(b *testing.B) {
	p, err := (*finder)(nil).startHelper([]string{Arg}, []string{}, &Session{})
	if err != nil {
		b.Fatal(err)
	}
	l := newLink(p, &Session{User: &proc.User{}}, nil)
	go l.read()
	defer l.close(errEnded)
	const size = 10 << 20
	for name, in := range map[string]*pb.FileWriteRequest{
		"there": {Data: make([]byte, size), Path: "size"},
		"back":  {Offset: size, Path: "size"},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
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
		})
	}
}
