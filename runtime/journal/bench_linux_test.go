package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const benchFiles = 20

func benchContent(round, i int) []byte {
	return []byte(fmt.Sprintf("%-2048d", round*benchFiles+i))
}

// BenchmarkCost compares a transaction of 20 files, and one of 1,000, with the same files without one, in turns: each is
// written, synced, renamed, and its directory synced. ratio is that of the times for 20 files, linear that of the time per
// file of 1,000 to that of 20 in a transaction, journal-B the bytes in the journal per file.
func BenchmarkCost(b *testing.B) {
	p := newTestDirs(b)
	g := newGuest(b, p, nil)
	var bare, few, many time.Duration
	var bytes uint64
	round := 0
	for b.Loop() {
		round++
		bare += timed(func() { writePlain(b, p, round, 20) })
		few += timed(func() { writeInTx(b, g, round, 20) })
		many += timed(func() { bytes = writeInTx(b, g, -round, 1000) })
	}
	b.ReportMetric(float64(few)/float64(bare), "ratio")
	b.ReportMetric(float64(many)/1000/(float64(few)/20), "linear")
	b.ReportMetric(float64(bytes)/1000, "journal-B/file")
	b.ReportMetric(float64(bare.Microseconds())/float64(round), "plain-µs/20")
	b.ReportMetric(float64(few.Microseconds())/float64(round), "tx-µs/20")
}

func timed(do func()) time.Duration {
	start := time.Now()
	do()
	return time.Since(start)
}

func writePlain(b *testing.B, p testDirs, round, files int) {
	for i := range files {
		if err := writePlainFile(filepath.Join(p.files, fmt.Sprint("plain", i)), benchContent(round, i)); err != nil {
			b.Fatal(err)
		}
	}
}

// writeInTx writes the files by file.write and returns the size of the journal in bytes.
func writeInTx(b *testing.B, g *guest, round, files int) uint64 {
	tx := g.begin(b)
	for i := range files {
		g.mustCall(b, tx, "file.write", &pb.WriteFileArgs{Path: fmt.Sprint("/file", i), Content: benchContent(round, i), Mode: "0640", Owner: fmt.Sprint(os.Getuid())})
	}
	bytes := tx.info().JournalBytes
	if err := tx.Commit(b.Context(), committedReply()); err != nil {
		b.Fatal(err)
	}
	if err := tx.Close(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	return bytes
}

func writePlainFile(path string, content []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Chmod(0o640); err != nil {
		return err
	}
	if err := f.Chown(os.Getuid(), -1); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// BenchmarkTxEmpty is a transaction that changes nothing.
func BenchmarkTxEmpty(b *testing.B) {
	g := newGuest(b, newTestDirs(b), nil)
	for b.Loop() {
		tx := g.begin(b)
		if err := tx.Commit(b.Context(), committedReply()); err != nil {
			b.Fatal(err)
		}
		_ = tx.Close(b.Context(), nil)
	}
}

// BenchmarkRollback20Files rolls back a transaction of 20 files.
func BenchmarkRollback20Files(b *testing.B) {
	p := newTestDirs(b)
	g := newGuest(b, p, nil)
	for i := range benchFiles {
		if err := writePlainFile(filepath.Join(p.files, fmt.Sprint("file", i)), benchContent(-1, i)); err != nil {
			b.Fatal(err)
		}
	}
	for round := 0; b.Loop(); round++ {
		b.StopTimer()
		tx := g.begin(b)
		for i := range benchFiles {
			g.mustCall(b, tx, "file.write", &pb.WriteFileArgs{Path: fmt.Sprint("/file", i), Content: benchContent(round, i)})
		}
		b.StartTimer()
		if report := tx.Rollback(b.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			b.Fatalf("%+v", report)
		}
		b.StopTimer()
		_ = tx.Close(b.Context(), nil)
		b.StartTimer()
	}
}
