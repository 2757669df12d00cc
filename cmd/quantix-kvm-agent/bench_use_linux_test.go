package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// trimmedAfter is longer than an agent waits for another request of its host before it gives back memory.
const trimmedAfter = 22 * time.Second

// BenchmarkUse: the memory of an agent after what an hour with a host brings: 720 reports of telemetry, one each 5 s, and
// 1,000 scripts, without the pauses: at once, when the host has asked for nothing for a while, and when it has left; and what
// it was before. The rest of each is pages of the program, which count in full where one agent runs it.
func BenchmarkUse(b *testing.B) {
	ctx := context.Background()
	for b.Loop() {
		a := agenttest.Start(b, agenttest.Options{Root: b.TempDir(), Args: []string{"--log-level", "error"}})
		c := a.Client(b, client.Options{})
		time.Sleep(startTime + time.Second) // a settled process is what is measured
		b.ReportMetric(pss(b, a.PID()), "before-KiB")
		b.ReportMetric(rollup(b, a.PID(), "Pss_Anon"), "before-anon-KiB")
		for i := range 1000 {
			if i < 720 {
				fail(b, c.AskTelemetry(ctx))
			}
			source := fmt.Sprintf("file.write('/f%d', 'run %d')", i%20, i)
			reply, err := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(source)})
			fail(b, err)
			if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
				b.Fatal(reply)
			}
		}
		b.ReportMetric(pss(b, a.PID()), "at-once-KiB")
		time.Sleep(trimmedAfter)
		b.ReportMetric(pss(b, a.PID()), "quiet-KiB")
		b.ReportMetric(rollup(b, a.PID(), "Pss_Anon"), "quiet-anon-KiB")
		fail(b, c.Close()) // what is not used any more goes back a while after that, and each time the agent says that it is ready
		time.Sleep(startTime + time.Second)
		b.ReportMetric(pss(b, a.PID()), "after-KiB")
		b.ReportMetric(rollup(b, a.PID(), "Pss_Anon"), "after-anon-KiB")
	}
	b.ReportMetric(0, "ns/op")
}

// cpuTime is what a process has used of the processors.
func cpuTime(b *testing.B, pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fail(b, err)
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, err := strconv.Atoi(fields[11])
	fail(b, err)
	system, err := strconv.Atoi(fields[12])
	fail(b, err)
	return time.Duration(user+system) * 10 * time.Millisecond // proc(5): in clock ticks, of which a second has 100
}

// ownTime is what this process has used of the processors, in microseconds.
func ownTime(b *testing.B) float64 {
	var used unix.Rusage
	fail(b, unix.Getrusage(unix.RUSAGE_SELF, &used))
	return float64(time.Duration(used.Utime.Nano() + used.Stime.Nano()).Microseconds())
}

// agentsVariable names, in the environment, the greatest number of agents of BenchmarkScale; without it there are 100.
const agentsVariable = "QUANTIX_AGENTS"

// BenchmarkScale: many agents on the sockets of this machine, and this process as the host of all: what each costs the host and
// itself while all report telemetry each 5 s, and for a script in each. Where the figures of a guest are the same with few and
// with many, it is linear. Each agent sees its own processes alone, as in a guest. QUANTIX_AGENTS=1000 needs 12 GiB.
func BenchmarkScale(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("namespaces need root")
	}
	most := 100
	if n, err := strconv.Atoi(os.Getenv(agentsVariable)); err == nil {
		most = n
	}
	var limit syscall.Rlimit
	fail(b, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	limit.Cur = limit.Max
	fail(b, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit))
	for _, n := range []int{most / 10, most} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			for b.Loop() {
				benchmarkAgents(b, n)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

const (
	scaleReports = 3  // that each agent sends while it is measured
	scaleScripts = 50 // at once, of all agents: on one machine a process is started for each
)

func benchmarkAgents(b *testing.B, n int) {
	ctx := context.Background()
	heap := heapInUse()
	var reports sync.WaitGroup
	counts := make([]int, n) // each is changed by one goroutine, which reads from its agent
	agents, clients := make([]*agenttest.Agent, n), make([]*client.Client, n)
	measuring := make(chan struct{})
	for i := range n {
		agents[i] = agenttest.Start(b, agenttest.Options{
			Root: b.TempDir(), Config: "telemetry_interval_secs: 5\n", Args: []string{"--log-level", "error"}, Alone: true,
		})
		reports.Add(1)
		clients[i] = agents[i].Client(b, client.Options{Event: func(_ string, event proto.Message) {
			if _, ok := event.(*pb.TelemetryReport); !ok {
				return
			}
			select {
			case <-measuring:
				if counts[i]++; counts[i] == scaleReports {
					reports.Done()
				}
			default:
			}
		}})
	}
	time.Sleep(startTime + time.Second)
	b.ReportMetric(float64(heapInUse()-heap)/float64(n)/1024, "host-KiB/guest")
	hostBegan, agentsBegan, began := ownTime(b), agentsTime(b, agents), time.Now()
	close(measuring)
	waitForReports(b, &reports, clients)
	seconds := time.Since(began).Seconds()
	b.ReportMetric((ownTime(b)-hostBegan)/float64(n)/scaleReports, "host-µs/report")
	b.ReportMetric(float64((agentsTime(b, agents)-agentsBegan).Microseconds())/float64(n)/scaleReports, "agent-µs/report")
	b.ReportMetric(seconds/scaleReports, "s/report")
	hostBegan, began = ownTime(b), time.Now()
	var all sync.WaitGroup
	places := make(chan bool, scaleScripts)
	for _, c := range clients {
		places <- true
		all.Go(func() {
			defer func() { <-places }()
			reply, err := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte("file.write('/f', 'x')")})
			if err != nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
				b.Error(reply, err)
			}
		})
	}
	all.Wait()
	b.ReportMetric(float64(time.Since(began).Microseconds())/float64(n)/1000, "script-ms/guest")
	b.ReportMetric((ownTime(b)-hostBegan)/float64(n), "host-µs/script")
	var memory float64
	for _, a := range agents {
		memory += pss(b, a.PID())
	}
	b.ReportMetric(memory/float64(n), "agent-pss-KiB")
	for i, c := range clients {
		c.Close()
		agents[i].Kill()
	}
}

// waitForReports waits until all agents have sent their reports, and fails where that takes far longer than it may: then a
// host has lost one of them.
func waitForReports(b *testing.B, reports *sync.WaitGroup, clients []*client.Client) {
	done := make(chan struct{})
	go func() { defer close(done); reports.Wait() }()
	select {
	case <-done:
		return
	case <-time.After(2 * time.Minute):
	}
	for i, c := range clients {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := client.Call[*pb.PongResponse](ctx, c, &pb.PingRequest{Sequence: 2})
		cancel()
		if err != nil {
			b.Errorf("agent %d: %v", i, err)
		}
	}
	b.Fatal("not all agents have sent their reports")
}

func agentsTime(b *testing.B, agents []*agenttest.Agent) (sum time.Duration) {
	for _, a := range agents {
		sum += cpuTime(b, a.PID())
	}
	return sum
}

// heapInUse is the heap and the stacks of this process, in bytes.
func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// BenchmarkFileWrite4KiB: a file of 4 KiB written durably by file_write, beside a program with the same durability that does
// the least, and a ping, which is what the way to the agent takes: a file beside it written, synced and renamed over the
// former one, and the directory synced.
func BenchmarkFileWrite4KiB(b *testing.B) {
	ctx, root := context.Background(), b.TempDir()
	c := benchAgent(b, root)
	content := make([]byte, 4096)
	run := 0
	alternate(b, func() {
		run++
		content[0], content[1] = byte(run), byte(run>>8)
		_, err := client.Call[*pb.FileWriteResponse](ctx, c, &pb.FileWriteRequest{Path: "/ours", Data: content, Mode: 0o644, Eof: true})
		fail(b, err)
	}, func() {
		file, err := os.OpenFile(filepath.Join(root, "temporary"), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
		fail(b, err)
		_, err = file.Write(content)
		fail(b, err)
		fail(b, file.Sync())
		fail(b, file.Close())
		fail(b, os.Rename(filepath.Join(root, "temporary"), filepath.Join(root, "raw")))
		dir, err := os.Open(root)
		fail(b, err)
		fail(b, dir.Sync())
		fail(b, dir.Close())
		_, err = client.Call[*pb.PongResponse](ctx, c, &pb.PingRequest{Sequence: 2})
		fail(b, err)
	})
}
