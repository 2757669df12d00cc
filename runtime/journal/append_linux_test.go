package journal

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What is put after a large file is cut off again: nothing of the file is copied.
func TestAppendToALargeFile(t *testing.T) {
	added := []byte("one line\n")
	for name, c := range map[string]struct {
		others func(path string) error // what others do before the rollback
		later  bool                    // the transaction replaces the file afterwards
		kept   string                  // what stays of the others'
		fails  bool                    // it stays as the others left it
	}{
		"alone":               {},
		"replaced afterwards": {later: true},
		"others append, too": {
			others: func(path string) error { return appendTo(path, "theirs\n") },
			kept:   "one line\ntheirs\n",
		},
		"others cut it": {
			others: func(path string) error { return os.Truncate(path, 3) },
			fails:  true,
		},
		"others replace it whole": {
			others: func(path string) error { return os.WriteFile(path, make([]byte, 4<<20), 0o644) },
			fails:  true,
		},
	} {
		for _, recovery := range []bool{false, true} {
			p := newTestDirs(t)
			path := filepath.Join(p.files, "log")
			old := bytes.Repeat([]byte("a line that was there\n"), 100_000)
			if err := os.WriteFile(path, old, 0o640); err != nil {
				t.Fatal(err)
			}
			before := mustDescribeTree(t, p.files)
			g := newGuest(t, p, nil)
			tx := g.begin(t)
			g.mustCall(t, tx, "file.append", &pb.WriteFileArgs{Path: "/log", Content: added, Mode: "0600"})
			if c.later {
				g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/log", Content: []byte("new")})
			}
			tx.Mark()
			g.mustCall(t, tx, "file.mkdir", &pb.MkdirArgs{Path: "/later"}) // so that what is left is on disk
			if kept, err := os.ReadDir(tx.dir("u")); err != nil || !c.later && len(kept) > 0 {
				t.Errorf("%s: copies %v, %v", name, kept, err)
			}
			if data, _ := os.ReadFile(path); !c.later && !bytes.Equal(data, append(old[:len(old):len(old)], added...)) {
				t.Fatalf("%s: not appended", name)
			}
			if c.others != nil {
				if err := c.others(path); err != nil {
					t.Fatal(err)
				}
			}
			theirs, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var report Report
			if recovery {
				if err := g.close(); err != nil {
					t.Fatal(err)
				}
				g = newGuest(t, p, nil)
				list, err := g.journal.Recover(t.Context(), nil)
				if err != nil || len(list) != 1 {
					t.Fatal(list, err)
				}
				report = list[0].Report
			} else {
				report = tx.Rollback(t.Context())
			}
			if (report.Status() == pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED) != c.fails {
				t.Errorf("%s: %+v", name, report)
			}
			if conflicts := report.Conflicts(); (c.kept != "") != (len(conflicts) == 1) {
				t.Errorf("%s: conflicts %v", name, conflicts)
			}
			for _, conflict := range report.Conflicts() {
				data, err := os.ReadFile(filepath.Join(p.files, conflict))
				if err != nil || string(data) != c.kept || os.Remove(filepath.Join(p.files, conflict)) != nil {
					t.Errorf("%s: kept %q, %v", name, data, err)
				}
			}
			if c.fails {
				if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, theirs) {
					t.Errorf("%s: the others' file was changed", name)
				}
				continue
			}
			now := mustDescribeTree(t, p.files)
			if d := differences(before, now); d != "" && !(len(report.Conflicts()) > 0 && !strings.Contains(d, "log")) {
				t.Errorf("%s, recovery %v: %s", name, recovery, d)
			}
			if !recovery {
				_ = g.close()
			}
		}
	}
}

func appendTo(path, text string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.WriteString(text)
	return err
}
