package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A script that another user wrote, or could write, does not run as root for its name.
func TestScriptsOfOthersAreNotRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("gives files to another user: run as root")
	}
	root := t.TempDir()
	dir := filepath.Join(root, "etc/quantix-kvm/scripts.d")
	err := os.MkdirAll(dir, 0o755)
	for _, name := range []string{"own", "theirs", "open"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name+".lua"), []byte("return 1"), 0o644))
	}
	err = errors.Join(err, os.Chown(dir+"/theirs.lua", 12345, 0), os.Chmod(dir+"/open.lua", 0o666), os.Symlink("theirs.lua", dir+"/link.lua"))
	if err != nil {
		t.Fatal(err)
	}
	c := agenttest.Start(t, agenttest.Options{Root: root}).Client(t, client.Options{})
	check := func(name string, runs bool) {
		t.Helper()
		reply, err := client.Call[*pb.RunScriptResponse](t.Context(), c, &pb.RunScriptRequest{Name: name})
		ran := err == nil && reply.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
		if why := reply.GetError().GetMessage(); ran != runs || !runs && !strings.Contains(why, "scripts.d") {
			t.Errorf("%s: %v, %v", name, reply, err)
		}
	}
	check("own", true)
	check("theirs", false)
	check("open", false)
	check("link", false)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	check("own", false)
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, 12345, 0)); err != nil {
		t.Fatal(err)
	}
	check("own", false)
}
