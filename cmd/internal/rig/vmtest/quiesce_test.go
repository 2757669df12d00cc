//go:build vm

package vmtest_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// rootWrites is a line of shell that succeeds as soon as the root can be written to, and hangs until then.
const rootWrites = "touch /root/written"

func freezeGuest(t *testing.T, c *client.Client, in *pb.QuiesceFilesystemsRequest) *pb.QuiesceFilesystemsResponse {
	t.Helper()
	reply, err := client.Call[*pb.QuiesceFilesystemsResponse](limited(t, time.Minute), c, in)
	if err != nil || !reply.Success {
		t.Fatalf("%v: %v %v", in, reply, err)
	}
	return reply
}

// thawGuest thaws, and asks again as long as that has not ended. It returns the last reply, with all mount points.
func thawGuest(t *testing.T, c *client.Client, token string) *pb.ThawFilesystemsResponse {
	t.Helper()
	var points []string
	for {
		reply, err := client.Call[*pb.ThawFilesystemsResponse](limited(t, time.Minute), c, &pb.ThawFilesystemsRequest{QuiesceToken: token})
		points = append(points, reply.GetThawedMountPoints()...)
		if errors.Is(err, fault.ErrBusy) {
			continue
		}
		if err != nil || !reply.Success {
			t.Fatal(reply, err)
		}
		reply.ThawedMountPoints = points
		return reply
	}
}

// snapshot has QEMU keep the disk as it is now, in a file that changes no more, and go on in another. It returns the file as a
// raw image. The machine must not be switched on again.
func snapshot(t *testing.T, vm *vmtest.VM) string {
	t.Helper()
	dir := t.TempDir()
	name, file := nodeOf(t, vm)
	next := filepath.Join(dir, "next.qcow2")
	goOnIn(t, file, next)
	err := vm.QMP(limited(t, time.Minute), "blockdev-snapshot-sync", map[string]any{
		"node-name": name, "snapshot-file": next, "snapshot-node-name": fmt.Sprintf("after%d", time.Now().UnixNano()%1e9), "mode": "existing",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(dir, "disk.raw")
	out, err := exec.Command("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", file, raw).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return raw
}

// goOnIn makes an image above that of a disk. QEMU would do it, too, and say so on its stdout, which is the monitor here.
func goOnIn(t *testing.T, disk, next string) {
	t.Helper()
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	text, err := exec.Command("qemu-img", "info", "-U", "--output=json", disk).Output()
	if err == nil {
		err = json.Unmarshal(text, &info)
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", disk, next, fmt.Sprint(info.Size)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// replays reports whether an ext4 in an image would have to replay its journal, and what e2fsck finds where it need not.
func replays(t *testing.T, image string) (bool, string) {
	t.Helper()
	out, err := exec.Command("dumpe2fs", "-h", image).Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "needs_recovery") {
		return true, ""
	}
	found, err := exec.Command("e2fsck", "-fn", image).CombinedOutput()
	if err == nil {
		return false, ""
	}
	return false, string(found)
}

// The whole guest is frozen: the agent answers, a snapshot of the running disk needs no replay, and all goes on afterwards.
func TestQuiesceGuest(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	vm.Must(t, "echo 'log_level: debug' >>/etc/quantix-kvm/agent.yaml && systemctl reload quantix-kvm-agent")
	vm.Must(t, `mkdir -p "/srv/with space" /srv/bind /srv/outer &&
		truncate -s 48M /var/tmp/outer && mkfs.ext4 -q /var/tmp/outer && mount -o loop /var/tmp/outer /srv/outer &&
		truncate -s 16M /srv/outer/inner && mkfs.ext4 -q /srv/outer/inner && mount -o loop /srv/outer/inner "/srv/with space" &&
		mount --bind /etc /srv/bind && mount -o remount,bind,ro /srv/bind`)
	vm.Must(t, `printf '#!/bin/sh\necho "$1" >>/run/told\n' >/etc/quantix-kvm/pre-freeze.d/hook && chmod 755 /etc/quantix-kvm/pre-freeze.d/hook`)
	vm.Must(t, `mkdir -p /etc/limiquantix/pre-freeze.d && cd /etc/limiquantix/pre-freeze.d &&
		printf '#!/bin/sh\necho "$1" >>/run/legacy\n' >of-another-agent && chmod 755 of-another-agent`)
	vm.Must(t, `for d in /root /srv/outer "/srv/with space"; do
		(cd "$d"; n=0; while :; do n=$((n+1)); echo $n >>load; [ $((n % 100)) = 0 ] && sync load; done) </dev/null >/dev/null 2>&1 &
	done`)
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	ctl := dial(t, vm, vmtest.CtlPort, client.Options{})

	unfrozen := snapshot(t, vm)
	if dirty, _ := replays(t, unfrozen); !dirty {
		t.Error("a snapshot of a busy guest that is not frozen needs no replay, so that this shows nothing")
	}
	for round := range numberFrom(t, "QUANTIX_ROUNDS", 2) {
		begun := time.Now()
		frozen := freezeGuest(t, c, &pb.QuiesceFilesystemsRequest{RunPreFreezeScripts: true, TimeoutSeconds: 300})
		t.Logf("round %d: frozen in %v", round, time.Since(begun))
		var points []string
		for _, f := range frozen.Frozen {
			if f.Frozen {
				points = append(points, f.MountPoint)
			}
		}
		if !slices.Equal(points, []string{"/srv/with space", "/srv/outer", "/"}) {
			t.Error(frozen)
		}
		raw := snapshot(t, vm)
		if round == 0 {
			whileFrozen(t, vm, c, ctl)
		}
		thawGuest(t, c, frozen.QuiesceToken)
		eventually(t, vm, "the root is written to", rootWrites)
		if dirty, found := replays(t, raw); dirty || found != "" {
			t.Errorf("round %d: replay %v\n%s", round, dirty, found)
		}
		os.Remove(raw)
	}
	if told := vm.Must(t, "tr '\\n' ' ' </run/told"); !strings.HasPrefix(told, "freeze thaw freeze thaw") {
		t.Errorf("the hook was told %q", told)
	}
	if told := vm.Must(t, "tr '\\n' ' ' </run/legacy"); !strings.HasPrefix(told, "freeze thaw freeze thaw") {
		t.Errorf("the hook in the directory of another agent was told %q", told)
	}
	vm.Must(t, "systemctl is-active quantix-kvm-agent")
	eventually(t, vm, "what the agent had to log while its journal was frozen is there: the eight requests that were refused",
		"[ $(journalctl -u quantix-kvm-agent -o cat | grep operation | grep -c busy) -ge 8 ]")
}

// whileFrozen asks for what is answered, and for what is not.
func whileFrozen(t *testing.T, vm *vmtest.VM, c, ctl *client.Client) {
	t.Helper()
	time.Sleep(time.Duration(numberFrom(t, "QUANTIX_FROZEN_SECONDS", 3)) * time.Second)
	for name, c := range map[string]*client.Client{"the port": c, "another port": ctl} {
		if _, err := client.Call[*pb.PongResponse](limited(t, 10*time.Second), c, &pb.PingRequest{Sequence: 2}); err != nil {
			t.Error(name, "ping", err)
		}
		status, err := client.Call[*pb.GetStatusResponse](limited(t, 10*time.Second), c, &pb.GetStatusRequest{})
		if err != nil || len(status.Frozen) != 1 || len(status.Frozen[0].MountPoints) != 3 {
			t.Error(name, status.GetFrozen(), err)
		}
		for _, in := range []proto.Message{
			&pb.ExecuteRequest{Command: "true", WaitForExit: true}, &pb.FileWriteRequest{Path: "/root/x", Data: []byte("x"), Eof: true},
			&pb.FileReadRequest{Path: "/etc/passwd"}, &pb.ListDirectoryRequest{Path: "/srv/with space"},
		} {
			_, err := client.Call[proto.Message](limited(t, 10*time.Second), c, in)
			if !errors.Is(err, fault.ErrBusy) || !strings.Contains(err.Error(), "frozen") {
				t.Error(name, in, err)
			}
		}
		if _, err := client.Call[*pb.FileWriteResponse](limited(t, 10*time.Second), c, &pb.FileWriteRequest{Path: "/run/x", Data: []byte("x"), Eof: true}); err != nil {
			t.Error(name, "a file in memory:", err)
		}
	}
	locked := vm.Must(t, "grep VmLck /proc/$(systemctl show -P MainPID quantix-kvm-agent)/status")
	if strings.Contains(locked, " 0 kB") {
		t.Error(locked)
	}
}

// An agent that is killed, at any moment of a freeze, leaves nothing frozen for more than five seconds, and the next one tells.
func TestQuiesceKilledAgent(t *testing.T) {
	t.Parallel()
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	thaws := func(what string) {
		t.Helper()
		begun := time.Now()
		eventually(t, vm, what+": the root is written to again", rootWrites)
		t.Logf("%s: writable after %v", what, time.Since(begun))
	}
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	frozen := freezeGuest(t, c, &pb.QuiesceFilesystemsRequest{TimeoutSeconds: 300})
	killed := time.Now()
	vm.Must(t, "kill -9 $(systemctl show -P MainPID quantix-kvm-agent)")
	thaws("killed while frozen")
	if took := time.Since(killed); took > 20*time.Second { // five, and what an emulated guest takes beside the thaw
		t.Errorf("it took %v", took)
	}
	c.Close()
	c = dial(t, vm, vmtest.AgentPort, client.Options{})
	reply, err := client.Call[*pb.ThawFilesystemsResponse](limited(t, time.Minute), c, &pb.ThawFilesystemsRequest{QuiesceToken: frozen.QuiesceToken})
	if !errors.Is(err, fault.ErrChanged) || reply.Success || !reply.ThawedEarly || !strings.Contains(reply.Error, "killed") {
		t.Error(reply, err)
	}
	c.Close()
	for range numberFrom(t, "QUANTIX_ROUNDS", 3) {
		c := dial(t, vm, vmtest.AgentPort, client.Options{})
		gone := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_, err := client.Call[*pb.QuiesceFilesystemsResponse](ctx, c, &pb.QuiesceFilesystemsRequest{TimeoutSeconds: 300})
			gone <- err
		}()
		after := rand.N(150 * time.Millisecond)
		time.Sleep(after)
		vm.Must(t, "kill -9 $(systemctl show -P MainPID quantix-kvm-agent)")
		thaws(fmt.Sprintf("killed after %v", after))
		c.Close()
		<-gone
		eventually(t, vm, "the agent is there again", "systemctl is-active quantix-kvm-agent && test ! -e /run/quantix-kvm/frozen")
	}
}

// What thaws by its time is told at once, and to who thaws later; a stop of the service thaws.
func TestQuiesceEarlyThaw(t *testing.T) {
	t.Parallel()
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	events := make(chan *pb.ErrorEvent, 10)
	c := dial(t, vm, vmtest.AgentPort, client.Options{Event: func(_ string, event proto.Message) {
		if e, ok := event.(*pb.ErrorEvent); ok {
			events <- e
		}
	}})
	begun := time.Now()
	frozen := freezeGuest(t, c, &pb.QuiesceFilesystemsRequest{TimeoutSeconds: 8}) // with what the freeze itself takes
	froze := time.Since(begun)
	vm.Must(t, "date -s '+1 year' >/dev/null") // no step of the clock moves it
	select {
	case e := <-events:
		if e.Code != "thawed_early" || e.Details["quiesce_token"] != frozen.QuiesceToken {
			t.Error(e)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nothing is told")
	}
	eventually(t, vm, "the root is written to", rootWrites)
	reply, err := client.Call[*pb.ThawFilesystemsResponse](limited(t, time.Minute), c, &pb.ThawFilesystemsRequest{QuiesceToken: frozen.QuiesceToken})
	if !errors.Is(err, fault.ErrChanged) || !reply.ThawedEarly {
		t.Error(reply, err)
	}
	if took := reply.FrozenDurationMs; took+uint64(froze.Milliseconds()) < 7900 || took > 30000 {
		t.Errorf("it was frozen for %d ms", took)
	}
	vm.Must(t, "date -s '-1 year' >/dev/null")
	freezeGuest(t, c, &pb.QuiesceFilesystemsRequest{TimeoutSeconds: 300})
	c.Close()
	vm.Must(t, "systemctl restart quantix-kvm-agent")
	eventually(t, vm, "the root is written to after a restart", rootWrites)
	trimmed, err := client.Call[*pb.TrimResponse](limited(t, 2*time.Minute), dial(t, vm, vmtest.AgentPort, client.Options{}), &pb.TrimRequest{})
	t.Log(trimmed, err)
	if trimmed == nil || len(trimmed.Filesystems) == 0 {
		t.Error(trimmed, err)
	}
}

// The way to take a snapshot that scripts/README.md describes: its program is run by ctl freeze, over a monitor of this test.
func TestQuiesceByTheDocumentedProgram(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("needs python3 on the host")
	}
	text, err := os.ReadFile("../../../../scripts/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, program, found := strings.Cut(string(text), "```python\n")
	program, _, ends := strings.Cut(program, "```\n")
	if !found || !ends {
		t.Fatal("the program is not in the guide")
	}
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	vm.Must(t, "(cd /root; while :; do date >>load; done) </dev/null >/dev/null 2>&1 &")
	dir := t.TempDir()
	file, ctl, disk := filepath.Join(dir, "qmp-snapshot.py"), filepath.Join(dir, "ctl"), filepath.Join(dir, "after.qcow2")
	if err := os.WriteFile(file, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", ctl, "../../../quantix-kvm-ctl").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dial(t, vm, vmtest.CtlPort, client.Options{}).Close()
	monitor := monitorOf(t, vm)
	_, before := nodeOf(t, vm)
	run := func(argv ...string) (string, int) {
		cmd := exec.CommandContext(limited(t, 2*time.Minute), ctl, append([]string{"--socket", vm.Socket(vmtest.CtlPort)}, argv...)...)
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	goOnIn(t, before, disk)
	if out, code := run("freeze", "--timeout", "60s", "--", python, file, monitor, "root", disk); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	eventually(t, vm, "the root is written to", rootWrites)
	raw := filepath.Join(dir, "disk.raw")
	if out, err := exec.Command("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", before, raw).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if dirty, found := replays(t, raw); dirty || found != "" {
		t.Errorf("replay %v\n%s", dirty, found)
	}
	if out, code := run("freeze", "--timeout", "60s", "--", "sh", "-c", "exit 7"); code != 7 {
		t.Errorf("exit code %d: %s", code, out)
	}
	if out, code := run("freeze", "--timeout", "1s", "--", "sleep", "3"); code != 1 || !strings.Contains(out, "thawed early") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if out, code := run("freeze", "--json", "--", "true"); code != 0 || !strings.Contains(out, `"exit_code":0`) {
		t.Errorf("exit code %d: %s", code, out)
	}
	token, code := run("-q", "freeze", "--timeout", "60s")
	if out, code2 := run("thaw", strings.TrimSpace(token)); code != 0 || code2 != 0 || !strings.Contains(out, "/") {
		t.Errorf("exit codes %d and %d: %s %s", code, code2, token, out)
	}
	if out, code := run("trim", "--mount", "/"); code != 0 && code != 4 {
		t.Errorf("exit code %d: %s", code, out)
	}
	eventually(t, vm, "the root is written to", rootWrites)
}

// nodeOf returns the name of QEMU's node for the machine's disk, and its file.
func nodeOf(t *testing.T, vm *vmtest.VM) (name, file string) {
	t.Helper()
	var block []struct {
		Inserted *struct {
			Name string `json:"node-name"`
			File string
		}
	}
	if err := vm.QMP(limited(t, time.Minute), "query-block", nil, &block); err != nil {
		t.Fatal(err)
	}
	for _, b := range block {
		if b.Inserted != nil {
			return b.Inserted.Name, b.Inserted.File
		}
	}
	t.Fatal("there is no disk")
	return "", ""
}

// monitorOf serves the machine's monitor, which is the test's own, on a socket.
func monitorOf(t *testing.T, vm *vmtest.VM) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintln(conn, `{"QMP": {"version": {}, "capabilities": []}}`)
		for requests := json.NewDecoder(conn); ; {
			var in struct {
				Execute   string
				Arguments json.RawMessage
			}
			if requests.Decode(&in) != nil {
				return
			}
			result := json.RawMessage("{}")
			if in.Execute != "qmp_capabilities" { // which the test has done
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				err = vm.QMP(ctx, in.Execute, in.Arguments, &result)
				cancel()
			}
			answer := map[string]any{"return": result}
			if err != nil {
				answer = map[string]any{"error": map[string]string{"desc": err.Error()}}
			}
			if json.NewEncoder(conn).Encode(answer) != nil {
				return
			}
		}
	}()
	return path
}

// How long a freeze and a thaw of a small volume take, beside qemu-ga's in the same boot; QUANTIX_ROUNDS says how many.
func TestQuiesceBesideQemuGA(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	vm.Must(t, `mkdir -p /srv/small && truncate -s 32M /var/tmp/small && mkfs.ext4 -q /var/tmp/small && mount -o loop /var/tmp/small /srv/small && systemctl start qemu-guest-agent`)
	conn, err := vm.Dial(limited(t, time.Minute), vmtest.QemuGAPort)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	ask := func(command string, arguments any) {
		t.Helper()
		text, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(append(text, '\n')); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		line, err := answers.ReadString('\n')
		if err != nil || strings.Contains(line, `"error"`) {
			t.Fatal(command, line, err)
		}
	}
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	points := []string{"/srv/small"}
	var token string
	agents := []struct {
		name         string
		freeze, thaw func()
		took         [2][]time.Duration
	}{
		{
			name: "the agent", freeze: func() {
				token = freezeGuest(t, c, &pb.QuiesceFilesystemsRequest{MountPoints: points}).QuiesceToken
			}, thaw: func() {
				if _, err := client.Call[*pb.ThawFilesystemsResponse](limited(t, time.Minute), c, &pb.ThawFilesystemsRequest{QuiesceToken: token}); err != nil {
					t.Fatal(err)
				}
			},
		},
		{
			name: "qemu-ga", freeze: func() { ask("guest-fsfreeze-freeze-list", map[string]any{"mountpoints": points}) },
			thaw: func() { ask("guest-fsfreeze-thaw", map[string]any{}) },
		},
	}
	rounds := numberFrom(t, "QUANTIX_ROUNDS", 20)
	for round := range rounds {
		for i := range agents {
			a := &agents[(i+round)%len(agents)] // neither is always the first
			vm.Must(t, "dd if=/dev/urandom of=/srv/small/f bs=64k count=4 2>/dev/null; sync /srv/small/f")
			begun := time.Now()
			a.freeze()
			a.took[0] = append(a.took[0], time.Since(begun))
			time.Sleep(50 * time.Millisecond) // a snapshot takes time; a thaw in the same tick of the clock has less to write
			begun = time.Now()
			a.thaw()
			a.took[1] = append(a.took[1], time.Since(begun))
		}
	}
	for i, what := range []string{"freeze", "thaw"} {
		for _, a := range agents {
			first := a.took[i][0]
			slices.Sort(a.took[i])
			t.Logf("%s by %s: median %v, quarters %v and %v, longest %v, the first %v (%d rounds)", what, a.name,
				a.took[i][rounds/2], a.took[i][rounds/4], a.took[i][rounds*3/4], a.took[i][rounds-1], first, rounds)
		}
	}
}
