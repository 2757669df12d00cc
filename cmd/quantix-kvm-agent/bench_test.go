package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Each benchmark measures the raw channel or the bare work in the same run and reports how many times that the agent
// takes: "x" is the ratio, and the only figure that means anything on a noisy machine.

const transfer = 64 << 20

// alternate runs ours and raw in turn and reports the time of the one as a multiple of the other's: of all runs together, of
// the medians, and of the quickest of each, in which nothing else of the machine has a part.
func alternate(b *testing.B, ours, raw func()) {
	ours()
	raw()
	var tookOurs, tookRaw time.Duration
	var eachOurs, eachRaw []time.Duration
	for b.Loop() {
		start := time.Now()
		ours()
		middle := time.Now()
		raw()
		ended := time.Now()
		eachOurs, eachRaw = append(eachOurs, middle.Sub(start)), append(eachRaw, ended.Sub(middle))
		tookOurs += middle.Sub(start)
		tookRaw += ended.Sub(middle)
	}
	slices.Sort(eachOurs)
	slices.Sort(eachRaw)
	b.ReportMetric(float64(tookOurs)/float64(tookRaw), "x")
	b.ReportMetric(float64(eachOurs[len(eachOurs)/2])/float64(eachRaw[len(eachRaw)/2]), "x-median")
	b.ReportMetric(float64(eachOurs[0])/float64(eachRaw[0]), "x-quickest")
	b.ReportMetric(float64(tookOurs.Microseconds())/float64(b.N), "ours-µs")
	b.ReportMetric(float64(tookRaw.Microseconds())/float64(b.N), "raw-µs")
	b.ReportMetric(0, "ns/op")
}

// rawPeer is a bare program at the other end of a unix socket.
func rawPeer(b *testing.B, serve func(net.Conn)) net.Conn {
	b.Helper()
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err == nil {
			defer conn.Close()
			serve(conn)
		}
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return conn
}

func fail(b *testing.B, err error) {
	if err != nil {
		b.Helper()
		b.Fatal(err)
	}
}

func benchAgent(b *testing.B, root string) *client.Client {
	a := agenttest.Start(b, agenttest.Options{Root: root, Config: "telemetry_interval_secs: 3600\n", Args: []string{"--log-level", "error"}})
	return a.Client(b, client.Options{})
}

// BenchmarkPing: beside 64 bytes to a bare echo and back.
func BenchmarkPing(b *testing.B) {
	ctx := context.Background()
	c := benchAgent(b, b.TempDir())
	echo := rawPeer(b, func(conn net.Conn) { io.Copy(conn, conn) })
	block := make([]byte, 64)
	alternate(b, func() {
		_, err := client.Call[*pb.PongResponse](ctx, c, &pb.PingRequest{Sequence: 2})
		fail(b, err)
	}, func() {
		_, err := echo.Write(block)
		fail(b, err)
		_, err = io.ReadFull(echo, block)
		fail(b, err)
	})
}

// BenchmarkGetCapabilities: beside a ping.
func BenchmarkGetCapabilities(b *testing.B) {
	ctx := context.Background()
	c := benchAgent(b, b.TempDir())
	alternate(b, func() {
		reply, err := client.Call[*pb.GetCapabilitiesResponse](ctx, c, &pb.GetCapabilitiesRequest{})
		fail(b, err)
		if len(reply.Capabilities) == 0 {
			b.Fatal(reply)
		}
	}, func() {
		_, err := client.Call[*pb.PongResponse](ctx, c, &pb.PingRequest{Sequence: 2})
		fail(b, err)
	})
}

// trueArgs are arguments of true(1), which reads no translations with two of them, and does with one.
var trueArgs = []string{"-", "-"}

// bareTrue starts /bin/true directly, with the arguments and the environment that the agent gives it.
func bareTrue() error {
	cmd := exec.Command("/bin/true", trueArgs...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "LANG=C.UTF-8"}
	return cmd.Run()
}

// agentTrue has the agent start it.
func agentTrue(c *client.Client) error {
	in := &pb.ExecuteRequest{Command: "/bin/true", Args: trueArgs, WaitForExit: true}
	reply, err := client.Call[*pb.ExecuteResponse](context.Background(), c, in)
	if err == nil && reply.ExitCode != 0 {
		err = fmt.Errorf("%v", reply)
	}
	return err
}

// BenchmarkExecTrue: /bin/true through the agent, beside starting it directly and a ping, which is what the way to the agent
// takes.
func BenchmarkExecTrue(b *testing.B) {
	ctx := context.Background()
	c := benchAgent(b, "")
	alternate(b, func() { fail(b, agentTrue(c)) }, func() {
		fail(b, bareTrue())
		_, err := client.Call[*pb.PongResponse](ctx, c, &pb.PingRequest{Sequence: 2})
		fail(b, err)
	})
}

// frameSize is the size of a frame of the bare loops.
const frameSize = 32_000

// BenchmarkExec50: /bin/true fifty times at once through the agent, beside starting as many directly at once.
func BenchmarkExec50(b *testing.B) {
	c := benchAgent(b, "")
	together := func(one func()) {
		var all sync.WaitGroup
		for range 50 {
			all.Go(one)
		}
		all.Wait()
	}
	run := func(one func() error) func() {
		return func() {
			together(func() {
				if err := one(); err != nil {
					b.Error(err)
				}
			})
		}
	}
	alternate(b, run(func() error { return agentTrue(c) }), run(bareTrue))
}

// BenchmarkPush64MiB: a file to the guest, beside the same bytes in frames of 32,000 to a bare loop that drops them.
func BenchmarkPush64MiB(b *testing.B) { benchmarkPush(b, io.Discard) }

// BenchmarkPush64MiBStored: the same beside a loop that writes them to a file of the same file system and has it durable, as
// the agent does.
func BenchmarkPush64MiBStored(b *testing.B) {
	file, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	fail(b, err)
	b.Cleanup(func() { file.Close() })
	benchmarkPush(b, file)
}

func benchmarkPush(b *testing.B, to io.Writer) {
	ctx := context.Background()
	c := benchAgent(b, b.TempDir())
	content := make([]byte, transfer)
	file, stored := to.(*os.File)
	sink := rawPeer(b, func(conn net.Conn) {
		frame := make([]byte, frameSize)
		for {
			for left := transfer; left > 0; left -= len(frame) {
				frame = frame[:min(frameSize, left)]
				if _, err := io.ReadFull(conn, frame); err != nil {
					return
				}
				to.Write(frame)
			}
			frame = frame[:frameSize]
			if stored {
				file.Sync()
				file.Truncate(0)
				file.Seek(0, io.SeekStart)
			}
			if _, err := conn.Write([]byte{1}); err != nil {
				return
			}
		}
	})
	b.SetBytes(transfer)
	alternate(b, func() {
		_, err := c.Push(ctx, "/file", bytes.NewReader(content), client.PushOptions{})
		fail(b, err)
	}, func() {
		for rest := content; len(rest) > 0; rest = rest[min(frameSize, len(rest)):] {
			_, err := sink.Write(rest[:min(frameSize, len(rest))])
			fail(b, err)
		}
		_, err := io.ReadFull(sink, make([]byte, 1))
		fail(b, err)
	})
}

// BenchmarkPull64MiB: a file from the guest, beside the same bytes of a file in frames of 32,000 from a bare loop.
func BenchmarkPull64MiB(b *testing.B) {
	ctx := context.Background()
	root := b.TempDir()
	fail(b, os.WriteFile(filepath.Join(root, "file"), make([]byte, transfer), 0o600))
	c := benchAgent(b, root)
	file, err := os.Open(filepath.Join(root, "file"))
	fail(b, err)
	defer file.Close()
	source := rawPeer(b, func(conn net.Conn) {
		frame := make([]byte, frameSize)
		for {
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				return
			}
			for offset := int64(0); offset < transfer; {
				n, _ := file.ReadAt(frame, offset)
				if _, err := conn.Write(frame[:n]); err != nil {
					return
				}
				offset += int64(n)
			}
		}
	})
	frame := make([]byte, frameSize)
	b.SetBytes(transfer)
	alternate(b, func() {
		got, err := c.Pull(ctx, "/file", io.Discard, client.PullOptions{})
		fail(b, err)
		if got.Size != transfer {
			b.Fatal(got)
		}
	}, func() {
		_, err := source.Write([]byte{1})
		fail(b, err)
		for left := transfer; left > 0; left -= min(frameSize, left) {
			_, err = io.ReadFull(source, frame[:min(frameSize, left)])
			fail(b, err)
		}
	})
}

// BenchmarkScriptOf20Writes: 20 files of 2 KiB written by one script, beside the same 20 as native requests. The files
// differ from run to run, so that none is left as it is.
func BenchmarkScriptOf20Writes(b *testing.B) {
	ctx := context.Background()
	c := benchAgent(b, b.TempDir())
	run := 0
	content := func(i int) []byte {
		return bytes.Repeat([]byte(fmt.Sprintf("run %07d file %02d\n", run, i)), 2048/20)
	}
	alternate(b, func() {
		run++
		var source bytes.Buffer
		for i := range 20 {
			fmt.Fprintf(&source, "file.write('/s%02d', %q, {mode = '0644'})\n", i, content(i))
		}
		reply, err := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: source.Bytes()})
		fail(b, err)
		if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(reply.Changes) != 20 {
			b.Fatal(reply)
		}
	}, func() {
		for i := range 20 {
			_, err := client.Call[*pb.FileWriteResponse](ctx, c, &pb.FileWriteRequest{Path: fmt.Sprintf("/n%02d", i), Data: content(i), Mode: 0o644, Eof: true})
			fail(b, err)
		}
	})
}
