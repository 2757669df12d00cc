//go:build vm

package vmtest_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A host comes, asks for a megabyte, and leaves in the middle of the reply, again and again. It is the Node Daemon's reader,
// which gives a channel up after 65,536 bytes without a magic: each time it finds a frame before that, and its own replies.
func TestChannelHostThatGivesUpEarly(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	watch := dial(t, vm, vmtest.CtlPort, client.Options{})
	ctx := limited(t, 8*time.Minute)
	gone := func() bool { // a change of hosts that the guest cannot see costs one tail: this one is to be seen
		status, err := client.Call[*pb.GetStatusResponse](ctx, watch, &pb.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range status.Ports {
			if p.Name == vmtest.AgentPort {
				return len(p.Sessions) == 0
			}
		}
		t.Fatal("the port is not served: ", status)
		return false
	}
	most := 0
	for i := range rounds(30) {
		for !gone() {
			time.Sleep(10 * time.Millisecond)
		}
		conn, err := vm.Dial(ctx, vmtest.AgentPort)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		h := strictHost{t, conn, 0}
		h.send("ping", &pb.PingRequest{Sequence: 2})
		h.until("ping")
		if i == 0 { // a command that outlives its host keeps nobody from the port
			h.send("long", &pb.ExecuteRequest{Command: "sleep 1000", WaitForExit: true})
		}
		h.send("output", &pb.ExecuteRequest{Command: "head -c 1000000 /dev/zero | tr '\\0' x", WaitForExit: true})
		for length := h.header(); ; length = h.header() {
			if length < 1_000_000 {
				h.payload(length)
				continue
			}
			if _, err := io.CopyN(io.Discard, conn, int64(i*99_991%length)); err != nil {
				t.Fatal(err)
			}
			break
		}
		conn.Close()
		most = max(most, h.skipped)
	}
	t.Logf("at most %d bytes in front of a frame", most)
}

// strictHost reads as the Node Daemon does.
type strictHost struct {
	t       *testing.T
	conn    net.Conn
	skipped int // the most bytes that it had to skip
}

func (h *strictHost) send(id string, request proto.Message) {
	h.t.Helper()
	if err := wire.WriteMessage(h.conn, wire.QTX1, wire.Wrap(id, request)); err != nil {
		h.t.Fatal(err)
	}
}

// header finds the next magic and gives the length after it.
func (h *strictHost) header() (length int) {
	h.t.Helper()
	var last, one [4]byte
	for read := 1; ; read++ {
		if _, err := io.ReadFull(h.conn, one[:1]); err != nil {
			h.t.Fatalf("behind %d bytes without a magic: %v", read-1, err)
		}
		copy(last[:], last[1:])
		last[3] = one[0]
		if string(last[:]) == "QTX\x01" {
			h.skipped = max(h.skipped, read-4)
			break
		}
		if read > 65_536 {
			h.t.Fatalf("the host gives up: %d bytes without a magic", read)
		}
	}
	if _, err := io.ReadFull(h.conn, one[:]); err != nil {
		h.t.Fatal(err)
	}
	return int(binary.BigEndian.Uint32(one[:]))
}

// payload reads what follows a header: it must be a message.
func (h *strictHost) payload(length int) *pb.AgentMessage {
	h.t.Helper()
	b := make([]byte, length)
	if _, err := io.ReadFull(h.conn, b); err != nil {
		h.t.Fatalf("%d bytes of a frame: %v", length, err)
	}
	m := &pb.AgentMessage{}
	if err := proto.Unmarshal(b, m); err != nil {
		h.t.Fatal(fmt.Errorf("a frame of %d bytes is none: %w", length, err))
	}
	return m
}

// until gives the message with an id.
func (h *strictHost) until(id string) *pb.AgentMessage {
	h.t.Helper()
	for {
		if m := h.payload(h.header()); m.MessageId == id {
			return m
		}
	}
}

// What a host sent while no agent ran is delivered to the next one, however late: that does not do what was asked long ago.
func TestChannelRequestsThatWaited(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	vm.Must(t, "touch /var/tmp/kept /var/tmp/given-up && systemctl stop quantix-kvm-agent")
	conn, err := vm.Dial(t.Context(), vmtest.AgentPort)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Minute))
	h := strictHost{t, conn, 0}
	now := guestNow(t, vm)
	waited := func(id string, at time.Time, request proto.Message) {
		m := wire.Wrap(id, request)
		if m.Timestamp = nil; !at.IsZero() {
			m.Timestamp = timestamppb.New(at)
		}
		if err := wire.WriteMessage(conn, wire.QTX1, m); err != nil {
			t.Fatal(err)
		}
	}
	waited("shutdown", now.Add(-time.Hour), &pb.ShutdownRequest{})
	waited("delete", now.Add(-time.Hour), &pb.FileDeleteRequest{Path: "/var/tmp/kept"})
	waited("undated", time.Time{}, &pb.FileDeleteRequest{Path: "/var/tmp/kept"})
	waited("stat", now.Add(-time.Hour), &pb.FileStatRequest{Path: "/var/tmp/kept"})
	vm.Must(t, "systemctl start quantix-kvm-agent")
	replies := map[string]*pb.AgentMessage{}
	for len(replies) < 4 {
		switch m := h.payload(h.header()); m.MessageId {
		case "shutdown", "delete", "undated", "stat":
			replies[m.MessageId] = m
		}
	}
	for _, id := range []string{"delete", "undated"} {
		if replies[id].ErrorDetail.GetCode() != "stale" {
			t.Errorf("%s: %v", id, replies[id])
		}
	}
	if answer := replies["shutdown"].GetShutdownResponse(); answer == nil || answer.Accepted || answer.Error == "" {
		t.Error(replies["shutdown"])
	}
	if !replies["stat"].GetFileStatResponse().GetSuccess() {
		t.Error(replies["stat"])
	}
	waited("now", time.Time{}, &pb.FileDeleteRequest{Path: "/var/tmp/given-up"}) // the port was empty before it
	if m := h.until("now"); !m.GetFileDeleteResponse().GetSuccess() {
		t.Error(m)
	}
	vm.Must(t, "test -e /var/tmp/kept && test ! -e /var/tmp/given-up")
}

// guestNow is the guest's clock.
func guestNow(t *testing.T, vm *vmtest.VM) time.Time {
	t.Helper()
	var seconds int64
	if _, err := fmt.Sscan(vm.Must(t, "date +%s"), &seconds); err != nil {
		t.Fatal(err)
	}
	return time.Unix(seconds, 0)
}

// A machine whose channel has the former name, and no udev that links names to devices: it is found, and nobody else's is
// touched.
func TestChannelOfTheFormerName(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	ctx := limited(t, 2*time.Minute)
	const former = "org.limiquantix.agent.0"
	vm.Must(t, "systemctl disable --now quantix-kvm-agent")
	for _, port := range []string{vmtest.AgentPort, vmtest.CtlPort} {
		if err := vm.RemovePort(ctx, port); err != nil {
			t.Fatal(err)
		}
	}
	if err := vm.AddPort(ctx, former); err != nil {
		t.Fatal(err)
	}
	eventually(t, vm, "the port is there, and no other of ours", "grep -qx "+former+" /sys/class/virtio-ports/*/name && ! grep -q org.quantix.agent /sys/class/virtio-ports/*/name")
	vm.Must(t, "udevadm settle; rm -r /dev/virtio-ports; systemd-run --quiet --unit=former "+agentPath)
	answers(t, vm, former)
	for _, device := range strings.Fields(vm.Must(t, "ls -l /proc/$(systemctl show -P MainPID former)/fd | grep -o 'vport.*'")) {
		if name := vm.Must(t, "cat /sys/class/virtio-ports/"+device+"/name"); name != former {
			t.Errorf("the agent has opened %s, %s", device, name)
		}
	}
}
