package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const benchFiles = 20

func benchContent(round, i int) []byte {
	return []byte(fmt.Sprintf("%-2048d", round*benchFiles+i))
}

// BenchmarkPlain20Files is what the same costs without a transaction: written, synced, renamed, and the directory synced.
func BenchmarkPlain20Files(b *testing.B) {
	p := newPlace(b)
	b.ResetTimer()
	for round := range b.N {
		for i := range benchFiles {
			if err := plain(filepath.Join(p.files, fmt.Sprint("file", i)), benchContent(round, i)); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func plain(path string, content []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
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

// BenchmarkPlain20FilesOneDirSync syncs the directory once, after the last file: the least that is durable.
func BenchmarkPlain20FilesOneDirSync(b *testing.B) {
	p := newPlace(b)
	dir, err := unix.Open(p.files, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(dir)
	b.ResetTimer()
	for round := range b.N {
		for i := range benchFiles {
			path := filepath.Join(p.files, fmt.Sprint("file", i))
			f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
			if err != nil {
				b.Fatal(err)
			}
			_, _ = f.Write(benchContent(round, i))
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
			_ = f.Close()
			_ = os.Rename(path+".new", path)
		}
		if err := unix.Fsync(dir); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTx20Files writes the same files in one transaction, through the file room.
func BenchmarkTx20Files(b *testing.B) {
	p := newPlace(b)
	g := started(b, p, nil)
	b.ResetTimer()
	for round := range b.N {
		tx := g.begin(b)
		for i := range benchFiles {
			g.must(b, tx, "file.write", &pb.WriteFileArgs{Path: fmt.Sprint("/file", i), Content: benchContent(round, i)})
		}
		if err := tx.Commit(b.Context(), status()); err != nil {
			b.Fatal(err)
		}
		if err := tx.Close(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTxEmpty is a transaction that changes nothing.
func BenchmarkTxEmpty(b *testing.B) {
	g := started(b, newPlace(b), nil)
	for b.Loop() {
		tx := g.begin(b)
		if err := tx.Commit(b.Context(), status()); err != nil {
			b.Fatal(err)
		}
		_ = tx.Close(b.Context(), nil)
	}
}

// BenchmarkRollback20Files takes back the same.
func BenchmarkRollback20Files(b *testing.B) {
	p := newPlace(b)
	g := started(b, p, nil)
	for i := range benchFiles {
		if err := plain(filepath.Join(p.files, fmt.Sprint("file", i)), benchContent(-1, i)); err != nil {
			b.Fatal(err)
		}
	}
	for round := 0; b.Loop(); round++ {
		b.StopTimer()
		tx := g.begin(b)
		for i := range benchFiles {
			g.must(b, tx, "file.write", &pb.WriteFileArgs{Path: fmt.Sprint("/file", i), Content: benchContent(round, i)})
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
