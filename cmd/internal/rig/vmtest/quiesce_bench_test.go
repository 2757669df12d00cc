//go:build vm

package vmtest_test

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// BenchmarkQuiesce measures a freeze and a thaw of a small volume, by the agent and by qemu-ga in turns, without emulation:
// both run in a container, with a loop device on a file in memory.
func BenchmarkQuiesce(b *testing.B) {
	c, first := bootAgent(b, "true")
	first.Close()
	conn, err := net.Dial("unix", filepath.Join(c.root, "run/test.sock"))
	must(b, err)
	defer conn.Close()
	agent := &rawHost{Conn: conn}
	for _, kind := range []string{"ext4", "xfs"} {
		b.Run(kind, func(b *testing.B) { benchQuiesce(b, c, agent, kind) })
	}
}

// rawHost speaks the agent's protocol without the goroutines of a client, as the other side of the measurement does its own.
type rawHost struct {
	net.Conn
	decoder wire.Decoder
}

func (h *rawHost) call(b *testing.B, request proto.Message) proto.Message {
	b.Helper()
	id := client.NewID()
	text, err := proto.Marshal(wire.Wrap(id, request))
	must(b, err)
	_, err = h.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...))
	must(b, err)
	_ = h.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		for frame, ok := h.decoder.Next(); ok; frame, ok = h.decoder.Next() {
			m := &pb.AgentMessage{}
			must(b, proto.Unmarshal(frame.Payload, m))
			if m.MessageId == id {
				return wire.Payload(m)
			}
		}
		n, err := h.Read(h.decoder.Space(64 << 10))
		must(b, err)
		h.decoder.Add(n)
	}
}

func benchQuiesce(b *testing.B, c *container, agent *rawHost, kind string) {
	mkfs, err := exec.LookPath("mkfs." + kind)
	if err != nil {
		b.Skipf("needs mkfs.%s", kind)
	}
	image := filepath.Join(c.root, "run", kind)
	file, err := os.Create(image)
	must(b, err)
	must(b, file.Truncate(320<<20)) // the least of xfs is 300 MiB
	must(b, file.Close())
	if out, err := exec.Command(mkfs, "-q", image).CombinedOutput(); err != nil {
		b.Fatalf("%v %s", err, out)
	}
	out, err := exec.Command("losetup", "-f", "--show", image).Output()
	must(b, err)
	device := strings.TrimSpace(string(out))
	b.Cleanup(func() { _ = exec.Command("losetup", "-d", device).Run() })
	var major, minor int
	text, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/dev")
	must(b, err)
	_, err = fmt.Sscanf(string(text), "%d:%d", &major, &minor)
	must(b, err)
	point := "/srv/" + kind
	c.run(fmt.Sprintf("test -b %[1]s || mknod %[1]s b %d %d; mkdir -p %[4]s && mount %[1]s %[4]s", device, major, minor, point))
	b.Cleanup(func() { c.run("umount " + point) })

	c.run("systemd-run -q --unit=qga-" + kind + " qemu-ga -m unix-listen -p /run/qga.sock")
	b.Cleanup(func() { c.run("systemctl stop qga-" + kind) })
	var qga net.Conn
	for ctx := limited(b, time.Minute); ; {
		if qga, err = net.Dial("unix", filepath.Join(c.root, "run/qga.sock")); err == nil {
			break
		}
		if !pause(ctx, 20*time.Millisecond) {
			b.Fatal(err)
		}
	}
	defer qga.Close()
	answers := bufio.NewReader(qga)
	ask := func(command string, arguments any) {
		b.Helper()
		text, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
		must(b, err)
		_, err = qga.Write(append(text, '\n'))
		must(b, err)
		_ = qga.SetReadDeadline(time.Now().Add(time.Minute))
		line, err := answers.ReadString('\n')
		if err != nil || strings.Contains(line, `"error"`) {
			b.Fatal(command, line, err)
		}
	}
	points := []string{point}
	token := ""
	agents := []struct {
		name         string
		freeze, thaw func()
		took         [2][]time.Duration
	}{
		{
			name: "ours",
			freeze: func() {
				reply := agent.call(b, &pb.QuiesceFilesystemsRequest{MountPoints: points, TimeoutSeconds: 20})
				r, ok := reply.(*pb.QuiesceFilesystemsResponse)
				if !ok || !r.Success {
					b.Fatal(reply)
				}
				token = r.QuiesceToken
			},
			thaw: func() {
				reply := agent.call(b, &pb.ThawFilesystemsRequest{QuiesceToken: token})
				if r, ok := reply.(*pb.ThawFilesystemsResponse); !ok || !r.Success {
					b.Fatal(reply)
				}
			},
		},
		{
			name: "qemu-ga", freeze: func() { ask("guest-fsfreeze-freeze-list", map[string]any{"mountpoints": points}) },
			thaw: func() { ask("guest-fsfreeze-thaw", map[string]any{}) },
		},
	}
	written := filepath.Join(c.root, point, "f")
	round := 0
	turn := func() {
		for i := range agents {
			a := &agents[(i+round)%len(agents)] // neither is always the first
			must(b, os.WriteFile(written, make([]byte, 256<<10), 0o644))
			begun := time.Now()
			a.freeze()
			a.took[0] = append(a.took[0], time.Since(begun))
			time.Sleep(20 * time.Millisecond) // a snapshot takes time
			begun = time.Now()
			a.thaw()
			a.took[1] = append(a.took[1], time.Since(begun))
			time.Sleep(20 * time.Millisecond)
		}
		round++
	}
	for b.Loop() {
		for range 10 { // few turns say nothing
			turn()
		}
	}
	for i, what := range []string{"freeze", "thaw"} {
		var medians [2]float64
		for j, a := range agents {
			medians[j] = float64(median(a.took[i]).Microseconds()) / 1000
			b.ReportMetric(medians[j], what+"-"+a.name+"-ms")
		}
		b.ReportMetric(medians[0]/medians[1], what+"-x")
	}
	b.ReportMetric(0, "ns/op")
}
