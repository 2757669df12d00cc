//go:build vm

package vmtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Hosts follow each other without a gap, and the guest is busy, so that it learns of a change late, or in the middle of what
// the next host asks for: each of them has its command run, hears what it wrote, and how it ended.
func TestChannelHostsWithoutAGap(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	dial(t, vm, vmtest.CtlPort, client.Options{}).Close()
	vm.Must(t, "for i in 1 2 3; do systemd-run --quiet sh -c 'while :; do :; done'; done")
	for i := range rounds(10) {
		if err := echoOnce(vm); err != nil {
			t.Errorf("host %d: %v", i, err)
		}
	}
}

// echoOnce connects, runs a command with its output, and leaves.
func echoOnce(vm *vmtest.VM) error {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	c, err := client.Dial(ctx, vm.Socket(vmtest.CtlPort), client.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	for err = client.ErrNoAnswer; errors.Is(err, client.ErrNoAnswer) && ctx.Err() == nil; { // three busy loops are before it
		err = c.Alive(ctx)
	}
	if err != nil {
		return err
	}
	s, err := c.Stream(ctx, client.Command{Argv: []string{"echo", "hello"}}, client.StreamOptions{})
	if err != nil {
		return err
	}
	defer s.Close()
	var got bytes.Buffer
	for {
		out, err := s.Next(ctx)
		got.Write(out.Stdout)
		switch {
		case err == io.EOF && got.String() == "hello\n":
			return nil
		case err == io.EOF:
			return errors.New("the command wrote " + got.String())
		case err != nil:
			return err
		}
	}
}

// Hosts follow each other without a gap, with the Node Daemon's manners: each sends a ping and nothing else, takes its pong for
// the only sign of life, and leaves. The first ping of a host is answered wherever the port can tell that the host changed.
func TestChannelFirstPings(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	all, lost := rounds(150), 0
	for i := range all {
		conn, err := vm.Dial(limited(t, time.Minute), vmtest.AgentPort)
		if err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprint("ping-", i)
		if err := wire.WriteMessage(conn, wire.QTX1, wire.Wrap(id, &pb.PingRequest{Sequence: 7})); err != nil {
			t.Fatal(err)
		}
		if !ponged(conn, id) {
			lost++
		}
		conn.Close()
	}
	t.Logf("%d of %d first pings were lost", lost, all)
	if lost*100 > all {
		t.Errorf("%d of %d first pings were lost", lost, all)
	}
}

// ponged reports whether a pong of an id comes within the time that the Node Daemon waits.
func ponged(conn net.Conn, id string) bool {
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	decoder, buf := wire.Decoder{Accept: wire.QTX1}, make([]byte, 64<<10)
	for {
		for frame, ok := decoder.Next(); ok; frame, ok = decoder.Next() {
			m := &pb.AgentMessage{}
			if proto.Unmarshal(frame.Payload, m) == nil && m.MessageId == id && m.GetPong() != nil {
				return true
			}
		}
		n, err := conn.Read(buf)
		if err != nil {
			return false
		}
		decoder.Feed(buf[:n])
	}
}
