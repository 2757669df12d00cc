package journal

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A file whose other name the transaction has removed has one, as far as a script sees: it is written as in a dry run, and a
// rollback gives back one file with both names.
func TestOtherNameThatWasRemoved(t *testing.T) {
	for what, remove := range map[string]*pb.RemoveArgs{
		"name": {Path: "/etc/app.d/also-two"}, "tree": {Path: "/etc/app.d", Recursive: true},
	} {
		for _, write := range []call{
			{"file.write", &pb.WriteFileArgs{Path: "/etc/two", Content: []byte("other")}},
			{"file.write", &pb.WriteFileArgs{Path: "/etc/two", Content: []byte("other"), Inplace: true}},
			{"file.append", &pb.WriteFileArgs{Path: "/etc/two", Content: []byte("more")}},
			{"file.copy", &pb.FromToArgs{From: "/etc/small", To: "/etc/two"}},
			{"file.move", &pb.FromToArgs{From: "/etc/small", To: "/etc/two"}},
			{"file.move", &pb.FromToArgs{From: "/etc/two", To: "/etc/small"}},
		} {
			for _, end := range []string{"rollback", "recovery", "commit"} {
				t.Run(what+" "+write.op+" "+end, func(t *testing.T) {
					p := newTestDirs(t)
					before := mustPopulate(t, p)
					g := newGuest(t, p, nil)
					tx := g.begin(t)
					g.mustCall(t, tx, "file.chmod", &pb.ChmodArgs{Path: "/etc/two", Mode: "0640"})
					err := g.call(t.Context(), tx, "file.write", &pb.WriteFileArgs{Path: "/etc/two", Content: []byte("x")})
					if err == nil || !strings.Contains(err.Error(), "has 2 names") {
						t.Error(err)
					}
					g.mustCall(t, tx, "file.remove", remove)
					g.mustCall(t, tx, write.op, write.in)
					g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/two", Content: []byte("last"), Parents: true})
					switch end {
					case "rollback":
						if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
							t.Errorf("%+v", report)
						}
						checkTree(t, before, p.files)
					case "recovery":
						if err := g.close(); err != nil {
							t.Fatal(err)
						}
						g = newGuest(t, p, nil)
						if list, err := g.journal.Recover(t.Context(), nil); err != nil || len(list) != 1 {
							t.Fatal(list, err)
						}
						checkTree(t, before, p.files)
					case "commit":
						if err := tx.Commit(t.Context(), committedReply()); err != nil {
							t.Fatal(err)
						}
						if got, err := os.ReadFile(filepath.Join(p.files, "etc/two")); string(got) != "last" || err != nil {
							t.Error(string(got), err)
						}
					}
				})
			}
		}
	}
}
