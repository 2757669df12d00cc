package process

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// BenchmarkList lists 300 processes and more, in turns with a bare read of the same files of /proc.
func BenchmarkList(b *testing.B) {
	for range 300 {
		start(b, "", "/bin/sleep", "1000")
	}
	r := newRoom(b)
	list(b, r, &pb.ListProcessesRequest{})
	last := r.processes.last
	last.at -= minSpan // so that no list waits
	buf := make([]byte, maxArguments+1)
	var ours, bare time.Duration
	count := 0
	for b.Loop() {
		r.processes.last = last
		last.at = sinceBoot() - 2*minSpan
		began := time.Now()
		out, err := r.list(context.Background(), nil, &pb.ListProcessesRequest{})
		ours += time.Since(began)
		if err != nil || len(out.Processes) < 300 {
			b.Fatal(len(out.GetProcesses()), err)
		}
		began = time.Now()
		count = bareRead(b, buf)
		bare += time.Since(began)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(count), "processes")
	b.ReportMetric(float64(ours.Microseconds())/float64(b.N), "µs/list")
	b.ReportMetric(float64(bare.Microseconds())/float64(b.N), "µs/bare")
	b.ReportMetric(float64(ours)/float64(bare), "times-bare")
}

// bareRead reads what a list needs of each process, and does nothing with it.
func bareRead(b *testing.B, buf []byte) (count int) {
	dir, err := os.Open("/proc")
	if err != nil {
		b.Fatal(err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		b.Fatal(err)
	}
	var stat unix.Stat_t
	for _, name := range names {
		if _, err := strconv.Atoi(name); err != nil {
			continue
		}
		count++
		unix.Fstatat(int(dir.Fd()), name, &stat, 0)
		for _, file := range []string{"/stat", "/cmdline"} {
			fd, err := unix.Openat(int(dir.Fd()), name+file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				continue
			}
			for { // to the end: the last read is empty
				if n, err := unix.Read(fd, buf); n <= 0 || err != nil {
					break
				}
			}
			unix.Close(fd)
		}
		unix.Readlinkat(int(dir.Fd()), name+"/cwd", buf)
	}
	return count
}
