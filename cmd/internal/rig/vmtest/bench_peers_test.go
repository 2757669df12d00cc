//go:build vm

package vmtest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// bareProgram builds the bare program in C and puts it into the guest. Without a C compiler there is none.
func bareProgram(b *testing.B, vm *vmtest.VM) string {
	b.Helper()
	compiler, err := exec.LookPath("gcc")
	if err != nil {
		b.Skip("the bare program in C needs gcc: apt-get install gcc libc6-dev")
	}
	local := filepath.Join(b.TempDir(), "bare")
	if out, err := exec.Command(compiler, "-O2", "-static", "-o", local, "testdata/bare.c").CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	const path = "/usr/bin/vmtest-bare"
	must(b, vm.Put(context.Background(), local, path, 0o755))
	return path
}

// benchBare holds rawport, which is Go, against the same loops in C, and tells what is left of the raw rates when a
// transfer's own work is done as barely: a checksum and a file.
func benchBare(b *testing.B, vm *vmtest.VM) {
	ctx, program := context.Background(), bareProgram(b, vm)
	for b.Loop() {
		inGo, err := vm.MeasurePort(ctx, vmtest.RawPort, vmtest.Load{RoundTrips: 1000})
		must(b, err)
		inC, err := vm.MeasureProgram(ctx, program, vmtest.RawPort, vmtest.Load{RoundTrips: 1000})
		must(b, err)
		store, send, err := vm.MeasureWork(ctx, program, vmtest.RawPort, vmtest.Load{})
		must(b, err)
		b.ReportMetric(float64(inGo.RoundTrip.Median.Microseconds()), "go-ping-µs")
		b.ReportMetric(float64(inC.RoundTrip.Median.Microseconds()), "c-ping-µs")
		b.ReportMetric(inGo.ToGuest, "go-push-MiB/s")
		b.ReportMetric(inC.ToGuest, "c-push-MiB/s")
		b.ReportMetric(store, "c-push-crc-file-MiB/s")
		b.ReportMetric(inGo.FromGuest, "go-pull-MiB/s")
		b.ReportMetric(inC.FromGuest, "c-pull-MiB/s")
		b.ReportMetric(send, "c-pull-crc-file-MiB/s")
	}
	b.ReportMetric(0, "ns/op")
}

// benchPingUnderPull measures pings while a file is pulled, and the bare echo of another port under the same load.
func benchPingUnderPull(b *testing.B, vm *vmtest.VM, c *client.Client) {
	ctx := context.Background()
	var ours, raw []time.Duration
	for b.Loop() {
		during(b, c, func(pulling context.Context) {
			var times []time.Duration
			for pulling.Err() == nil {
				start := time.Now()
				_, err := client.Call[*pb.PongResponse](ctx, c, &pb.PingRequest{Sequence: 2})
				must(b, err)
				times = append(times, time.Since(start))
			}
			ours = append(ours, vmtest.Summarize(times).P99)
		})
		during(b, c, func(pulling context.Context) {
			echo, err := vm.Echo(pulling, vmtest.RawPort)
			must(b, err)
			raw = append(raw, echo.P99)
		})
	}
	mine, bare := vmtest.Summarize(ours).Median, vmtest.Summarize(raw).Median
	compare(b, mine, bare)
	b.ReportMetric(float64((mine - bare).Microseconds()), "more-µs")
}

// during pulls the file while f runs, whose context ends with it.
func during(b *testing.B, c *client.Client, f func(pulling context.Context)) {
	pulling, done := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() {
		_, err := c.Pull(context.Background(), "/dev/shm/file", io.Discard, client.PullOptions{})
		done()
		failed <- err
	}()
	f(pulling)
	must(b, <-failed)
}

// qemuGA speaks to Debian's qemu-ga in the guest.
type qemuGA struct {
	conn io.ReadWriter
	in   *bufio.Reader
}

func startQemuGA(b *testing.B, vm *vmtest.VM) *qemuGA {
	b.Helper()
	vm.Must(b, "systemctl start qemu-guest-agent")
	conn, err := vm.Dial(context.Background(), vmtest.QemuGAPort)
	must(b, err)
	b.Cleanup(func() { conn.Close() })
	return &qemuGA{conn, bufio.NewReaderSize(conn, 1<<20)}
}

// call runs one command and reads what it returns.
func (q *qemuGA) call(b *testing.B, command string, arguments, result any) {
	b.Helper()
	request, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	must(b, err)
	_, err = q.conn.Write(append(request, '\n'))
	must(b, err)
	line, err := q.in.ReadBytes('\n')
	must(b, err)
	var reply struct {
		Return json.RawMessage
		Error  json.RawMessage
	}
	must(b, json.Unmarshal(line, &reply))
	if reply.Error != nil {
		b.Fatalf("qemu-ga %s: %s", command, reply.Error)
	}
	must(b, json.Unmarshal(reply.Return, result))
}

const peerMegabytes = 8

// benchQemuGA moves a file by qemu-ga, with each size of its chunks, and reports the best rates and the ping. It sums nothing.
func benchQemuGA(b *testing.B, vm *vmtest.VM) {
	q := startQemuGA(b, vm)
	content := make([]byte, peerMegabytes<<20)
	for b.Loop() {
		var times []time.Duration
		for range 300 {
			start := time.Now()
			q.call(b, "guest-ping", struct{}{}, &struct{}{})
			times = append(times, time.Since(start))
		}
		b.ReportMetric(float64(vmtest.Summarize(times).Median.Microseconds()), "ping-µs")
		var push, pull float64
		for _, chunk := range []int{64 << 10, 512 << 10, 2 << 20} {
			push = max(push, rateOf(func() { q.write(b, content, chunk) }))
			pull = max(pull, rateOf(func() { q.read(b, len(content), chunk) }))
		}
		b.ReportMetric(push, "push-MiB/s")
		b.ReportMetric(pull, "pull-MiB/s")
	}
	b.ReportMetric(0, "ns/op")
}

func rateOf(f func()) float64 {
	start := time.Now()
	f()
	return peerMegabytes / time.Since(start).Seconds()
}

func (q *qemuGA) open(b *testing.B, mode string) (handle int64) {
	q.call(b, "guest-file-open", map[string]any{"path": "/dev/shm/peer", "mode": mode}, &handle)
	return handle
}

func (q *qemuGA) write(b *testing.B, content []byte, chunk int) {
	handle := q.open(b, "w")
	for len(content) > 0 {
		n := min(chunk, len(content))
		var wrote struct{ Count int }
		q.call(b, "guest-file-write", map[string]any{"handle": handle, "buf-b64": base64.StdEncoding.EncodeToString(content[:n])}, &wrote)
		if wrote.Count == 0 {
			b.Fatal("qemu-ga wrote nothing")
		}
		content = content[wrote.Count:]
	}
	q.call(b, "guest-file-close", map[string]any{"handle": handle}, &struct{}{})
}

func (q *qemuGA) read(b *testing.B, size, chunk int) {
	handle := q.open(b, "r")
	for got := 0; got < size; {
		var part struct {
			Count int
			Data  string `json:"buf-b64"`
		}
		q.call(b, "guest-file-read", map[string]any{"handle": handle, "count": chunk}, &part)
		data, err := base64.StdEncoding.DecodeString(part.Data)
		must(b, err)
		if got += len(data); len(data) == 0 {
			b.Fatal("qemu-ga read nothing")
		}
	}
	q.call(b, "guest-file-close", map[string]any{"handle": handle}, &struct{}{})
}

// run executes a program by qemu-ga and asks, again at once, until its result is known. The caller gets what it wrote.
func (q *qemuGA) run(b *testing.B, path string, args ...string) []byte {
	var started struct{ PID int64 }
	q.call(b, "guest-exec", map[string]any{"path": path, "arg": append([]string{}, args...), "capture-output": true}, &started)
	for {
		var status struct {
			Exited   bool
			ExitCode int
			Out      string `json:"out-data"`
		}
		if q.call(b, "guest-exec-status", map[string]any{"pid": started.PID}, &status); !status.Exited {
			continue
		}
		out, err := base64.StdEncoding.DecodeString(status.Out)
		must(b, err)
		if status.ExitCode != 0 {
			b.Fatalf("qemu-ga: %s ended with %d", path, status.ExitCode)
		}
		return out
	}
}

const listed = 10_000

// benchBesideQemuGA holds commands until their result is known, and a listing, against qemu-ga's. qemu-ga has no listings: its
// users run ls.
func benchBesideQemuGA(b *testing.B, vm *vmtest.VM, c *client.Client) {
	ctx, q := context.Background(), startQemuGA(b, vm)
	vm.Must(b, fmt.Sprintf("mkdir -p /dev/shm/list && cd /dev/shm/list && seq -f entry-%%.0f %d | xargs touch", listed))
	for name, f := range map[string]struct{ ours, theirs func() }{
		"exec-true": {func() {
			reply, err := client.Call[*pb.ExecuteResponse](ctx, c, &pb.ExecuteRequest{Command: "/bin/true", Args: []string{""}, WaitForExit: true})
			must(b, err)
			if reply.ExitCode != 0 {
				b.Fatal(reply)
			}
		}, func() { q.run(b, "/bin/true") }},
		"exec-echo": {func() {
			reply, err := client.Call[*pb.ExecuteResponse](ctx, c, &pb.ExecuteRequest{Command: "/bin/echo", Args: []string{"hello"}, WaitForExit: true})
			must(b, err)
			if reply.Stdout != "hello\n" {
				b.Fatal(reply)
			}
		}, func() {
			if out := q.run(b, "/bin/echo", "hello"); string(out) != "hello\n" {
				b.Fatalf("qemu-ga: %q", out)
			}
		}},
		"list-10000": {func() {
			reply, err := client.Call[*pb.ListDirectoryResponse](ctx, c, &pb.ListDirectoryRequest{Path: "/dev/shm/list"})
			must(b, err)
			if len(reply.Entries) != listed {
				b.Fatalf("%d entries", len(reply.Entries))
			}
		}, func() {
			if out := q.run(b, "/bin/ls", "-lA", "/dev/shm/list"); bytes.Count(out, []byte("entry-")) != listed {
				b.Fatalf("qemu-ga: %d bytes", len(out))
			}
		}},
	} {
		b.Run(name, func(b *testing.B) {
			var ours, theirs time.Duration
			f.ours()
			f.theirs()
			for b.Loop() {
				start := time.Now()
				f.ours()
				middle := time.Now()
				f.theirs()
				ours, theirs = ours+middle.Sub(start), theirs+time.Since(middle)
			}
			b.ReportMetric(float64(ours)/float64(theirs), "x")
			b.ReportMetric(float64(ours.Microseconds())/float64(b.N), "ours-µs")
			b.ReportMetric(float64(theirs.Microseconds())/float64(b.N), "qemu-ga-µs")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// benchPushDigest is a push whose SHA-256 the agent compares, beside one whose it does not.
func benchPushDigest(b *testing.B, c *client.Client, content []byte) {
	var with, without time.Duration
	push := func(digest bool) time.Duration {
		start := time.Now()
		_, err := c.Push(context.Background(), "/dev/shm/file", bytes.NewReader(content), client.PushOptions{SHA256: digest})
		must(b, err)
		return time.Since(start)
	}
	for b.Loop() {
		with += push(true)
		without += push(false)
	}
	b.ReportMetric(float64(with)/float64(without), "x")
	b.ReportMetric(float64((with-without).Milliseconds())/float64(b.N), "digest-ms")
	b.ReportMetric(0, "ns/op")
}
