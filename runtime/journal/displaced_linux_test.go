package journal

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A user who takes away his own directory, in which a script changed something, does not make the rollback fail: what stood in
// there is beside it, for root alone, and named; all else is as before.
func TestUserTakesHisDirectoryAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changes owners: run as root")
	}
	for what, line := range map[string]string{
		"removed":  "rm -rf sub",
		"moved":    "mv sub away",
		"a link":   "mv sub away; ln -s /etc sub",
		"a file":   "mv sub away; echo x >sub",
		"a fifo":   "rm -rf sub; mkfifo sub",
		"recovery": "rm -rf sub",
		"another":  "mv sub away; mkdir sub; chown 1234:1234 sub",
	} {
		t.Run(what, func(t *testing.T) {
			p := newTestDirs(t)
			mustPopulate(t, p)
			sub := filepath.Join(p.files, "home/sub")
			err := errors.Join(os.MkdirAll(sub+"/tree", 0o755), os.WriteFile(sub+"/conf", []byte("his"), 0o640),
				os.WriteFile(sub+"/large", largeContent('h'), 0o600), os.Symlink("conf", sub+"/link"),
				os.WriteFile(sub+"/tree/one", []byte("1"), 0o644), unix.Mkfifo(sub+"/fifo", 0o600))
			if out, chown := exec.Command("chown", "-hR", "1234:1234", filepath.Dir(sub)).CombinedOutput(); chown != nil || err != nil {
				t.Fatal(err, string(out))
			}
			g := newGuest(t, p, nil)
			tx := g.begin(t)
			g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/small", Content: []byte("ours")})
			g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/home/sub/conf", Content: []byte("ours"), Owner: "1234"})
			g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/home/sub/large", Content: []byte("ours"), Owner: "1234"})
			g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/home/sub/new", Content: []byte("ours"), Owner: "1234"})
			g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: "/home/sub/link"})
			g.mustCall(t, tx, "file.chmod", &pb.ChmodArgs{Path: "/home/sub/fifo", Mode: "0666"})
			g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: "/home/sub/tree", Recursive: true})
			g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/large", Content: []byte("ours")})
			if out, err := exec.Command("sh", "-c", "cd "+filepath.Dir(sub)+"; "+line).CombinedOutput(); err != nil {
				t.Fatal(err, string(out))
			}
			var report Report
			if what == "recovery" {
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
				if err := tx.Close(t.Context(), &pb.RunScriptResponse{Status: report.Status()}); err != nil {
					t.Fatal(err)
				}
			}
			if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_PARTIAL {
				t.Errorf("%+v", report)
			}
			g.awaitCleaning(t)
			now := mustDescribeTree(t, p.files)
			suffix := ".quantix-conflict-" + tx.ID()
			for name, want := range map[string]string{
				"conf": "mode 100600 owner 0:0", "large": "mode 100600 owner 0:0", "link": "mode 120777 owner 0:0",
				"fifo": "mode 10600 owner 0:0", "tree": "mode 40700 owner 0:0",
			} {
				if !strings.HasPrefix(now["home/"+name+suffix], want) {
					t.Errorf("%s is %q", name, now["home/"+name+suffix])
				}
				named := fmt.Sprintf("/home/sub/%s: its directory was removed or moved away meanwhile; what it was, with mode %s and owner 1234:1234, is at /home/%s",
					name, map[string]string{"conf": "0640", "link": "0777", "tree": "0755"}[name], name+suffix)
				if !strings.Contains(fmt.Sprint(report.NotUndone()), strings.Replace(named, "mode  ", "mode 0600 ", 1)) {
					t.Errorf("%s is not named: %v", name, report.NotUndone())
				}
			}
			for name, want := range map[string]string{
				"etc/small": "small\n", "etc/large": string(largeContent('a')), "home/conf" + suffix: "his",
				"home/large" + suffix: string(largeContent('h')), "home/tree" + suffix + "/one": "1",
			} {
				if data, err := os.ReadFile(filepath.Join(p.files, name)); string(data) != want {
					t.Errorf("%s is not as it was: %d bytes, %v", name, len(data), err)
				}
			}
			for name := range now {
				if strings.Contains(name, "home/new") || strings.HasPrefix(name, "home/sub/") {
					t.Errorf("%s was made by the script", name)
				}
			}
			if told := strings.Contains(fmt.Sprint(report.NotUndone()), "/home/sub/new: its directory"); told != (what == "another") {
				t.Errorf("of what was made: %v", report.NotUndone())
			}
			if left, _ := os.ReadDir(filepath.Join(p.state, "kept")); len(left) > 0 {
				t.Errorf("kept: %v", left)
			}
		})
	}
}
