package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
)

const siteScript = `return script {
  name = "site", version = "1", needs = {"file", "account"},
  params = {port = {type = "integer", default = 80}, password = {type = "string", secret = true}},
  run = function(p)
    file.mkdir("/srv/www/data", {parents = true})
    file.write("/etc/site.conf", "port " .. p.port .. "\n", {mode = "0600"})
    file.remove("/srv/a", {recursive = true})
    file.symlink("/srv/www", "/etc/www")
    account.create("site", {system = true})
    if p.port == 666 then error("a bad port") end
    while p.port == 667 do end
    return p.port
  end,
}`

// makeTree makes a tree and scripts, and returns what runs apply on it.
func makeTree(t *testing.T) (root, dir string, apply func(args ...string) (out string, code int)) {
	t.Helper()
	root, dir = scratch(t), t.TempDir()
	files := map[string]string{
		filepath.Join(root, "etc/passwd"): "root:x:0:0:root:/root:/bin/bash\n", filepath.Join(root, "etc/group"): "root:x:0:\n",
		filepath.Join(root, "etc/shadow"): "root:*:19000:0:99999:7:::\n",
		filepath.Join(dir, "site.lua"):    siteScript,
		filepath.Join(dir, "other.lua"):   `return script {name = "other", version = "1", needs = {"file"}, params = {title = {type = "string", default = ""}}, run = function(p) file.write("/etc/title", p.title) end}`,
	}
	for path, content := range files {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root, dir, func(args ...string) (string, int) {
		out, err := tool(t, append([]string{"apply", "--root", root, "--state", filepath.Join(dir, "state")}, args...)...)
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return out, exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		return out, 0
	}
}

func TestApply(t *testing.T) {
	root, dir, apply := makeTree(t)
	site, other, lock := filepath.Join(dir, "site.lua"), filepath.Join(dir, "other.lua"), filepath.Join(dir, "lock")
	before := picture(t, root)

	if out, code := apply(site, other, "-p", "port=8443", "-p", "other.title=hello", "-n"); code != 0 || !strings.Contains(out, "dry run") || picture(t, root) != before {
		t.Errorf("%d %s", code, out)
	}
	if out, code := apply(other, site, other, "-p", "port=666", "-p", "title=x"); code != 5 || !strings.Contains(out, "a bad port") {
		t.Errorf("%d %s", code, out)
	}
	if title, err := os.ReadFile(filepath.Join(root, "etc/title")); err != nil || string(title) != "x" {
		t.Error("the script before the one that failed: ", err)
	}
	if err := os.Remove(filepath.Join(root, "etc/title")); err != nil {
		t.Fatal(err)
	}
	for _, wrong := range [][]string{
		{site, "-p", "nothing=1"}, {filepath.Join(dir, "missing.lua")}, {"no-such-script"}, {site, "-p", "port"}, {site, "--root", "/"},
		{site, "--root", filepath.Join(dir, "missing")}, {site, "--root", site}, {site, "--state", filepath.Join(root, "state")},
	} {
		if out, code := apply(wrong...); code != 1 || len(out) < 20 {
			t.Errorf("%q: %d %s", wrong, code, out)
		}
	}

	out, code := apply(site, other, "-p", "port=8443", "-p", "other.title=hello", "--json", "--quiet", "--lock", lock)
	var report struct {
		Root    string
		Scripts []struct {
			Script, SHA256 string
			Reply          struct {
				Status  string
				Result  any
				Changes []any
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != 0 {
		t.Fatalf("%d %v: %s", code, err, out)
	}
	if len(report.Scripts) != 2 || report.Scripts[0].Reply.Status != "SCRIPT_STATUS_COMMITTED" || report.Scripts[0].Reply.Result != 8443.0 || len(report.Scripts[0].SHA256) != 64 {
		t.Errorf("%+v", report)
	}
	for path, want := range map[string]string{"etc/site.conf": "port 8443\n", "etc/title": "hello"} {
		if got, err := os.ReadFile(filepath.Join(root, path)); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", path, got, err)
		}
	}
	if passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd")); err != nil || !strings.Contains(string(passwd), "\nsite:x:") {
		t.Errorf("%s %v", passwd, err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "state")); err == nil {
		t.Error("the state is left: ", left)
	}

	done := picture(t, root)
	if out, code := apply(site, other, "-p", "port=8443", "-p", "other.title=hello", "--lock", lock); code != 0 || picture(t, root) != done {
		t.Errorf("a second run: %d %s", code, out)
	}
	if out, code := apply(site, other, "-p", "port=8444", "-p", "other.title=hello", "--lock", lock); code != 1 || !strings.Contains(out, "site has other parameters") || picture(t, root) != done {
		t.Errorf("another parameter: %d %s", code, out)
	}
	if out, code := apply(site, "--lock", lock, "-p", "port=8443"); code != 1 || !strings.Contains(out, "other is not asked for") {
		t.Errorf("a script less: %d %s", code, out)
	}
}

// A script that fails, or whose apply is killed, leaves nothing behind.
func TestApplyTakesBack(t *testing.T) {
	root, dir, apply := makeTree(t)
	site := filepath.Join(dir, "site.lua")
	before := picture(t, root)
	if out, code := apply(site, "-p", "port=666"); code != 5 || !strings.Contains(out, "everything is as it was") {
		t.Errorf("%d %s", code, out)
	}
	if after := picture(t, root); after != before {
		t.Errorf("not as it was:\n%s\nbut\n%s", before, after)
	}

	binary, err := agenttest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	killed := exec.Command(binary, "apply", "--root", root, "--state", state, site, "-p", "port=667")
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd")); err == nil && strings.Contains(string(passwd), "site") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does nothing")
		}
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.Wait()
	if picture(t, root) == before {
		t.Fatal("nothing was done")
	}
	empty := filepath.Join(dir, "empty.lua")
	if err := os.WriteFile(empty, []byte("return 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := apply(empty); code != 0 || !strings.Contains(out, "an earlier apply: ") {
		t.Errorf("%d %s", code, out)
	}
	if after := picture(t, root); after != before {
		t.Errorf("not as it was:\n%s\nbut\n%s", before, after)
	}
}

// The same scripts on the same tree give the same bytes and times.
func TestApplyIsReproducible(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	var pictures []string
	for range 2 {
		root, dir, apply := makeTree(t)
		if out, code := apply(filepath.Join(dir, "site.lua")); code != 0 {
			t.Fatal(out)
		}
		pictures = append(pictures, picture(t, root))
		time.Sleep(10 * time.Millisecond)
	}
	if pictures[0] != pictures[1] {
		t.Errorf("%s\nbut\n%s", pictures[0], pictures[1])
	}
}

// What keeps apply from ending well for sure is found before the tree is changed.
func TestApplyChecksFirst(t *testing.T) {
	root, dir, apply := makeTree(t)
	before, site := picture(t, root), filepath.Join(dir, "site.lua")
	if out, code := apply(site, "--lock", filepath.Join(dir, "nowhere", "lock")); code != 1 || !strings.Contains(out, "--lock: ") || picture(t, root) != before {
		t.Errorf("a lock that cannot be written: %d %s", code, out)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if out, code := apply(site); code != 1 || !strings.Contains(out, "no number of seconds") || picture(t, root) != before {
		t.Errorf("an epoch that is none: %d %s", code, out)
	}
}
