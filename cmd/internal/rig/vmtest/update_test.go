//go:build vm

package vmtest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// updater sends updates to a machine, which trusts its key.
type updater struct {
	*testing.T
	vm  *vmtest.VM
	key minisign.PrivateKey
}

func newUpdater(t *testing.T, vm *vmtest.VM) *updater {
	t.Helper()
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	vm.Must(t, "printf 'update:\\n  public_key: "+public.String()+"\\n  confirm_seconds: 10\\n  allow_downgrade: true\\n' >> /etc/quantix-kvm/agent.yaml && sync")
	return &updater{t, vm, private}
}

// send sends a program under a version, on the port of the command line tool.
func (u *updater) send(program []byte, version string, o client.Update) (*pb.AgentUpdateResponse, error) {
	u.Helper()
	reader := minisign.NewReader(bytes.NewReader(program))
	if _, err := io.Copy(io.Discard, reader); err != nil {
		u.Fatal(err)
	}
	o.Version, o.Signature = version, reader.SignWithComments(u.key, "version:"+version+" platform:linux/amd64", "")
	c := dial(u, u.vm, vmtest.CtlPort, client.Options{})
	defer c.Close()
	return c.Update(limited(u, 2*time.Minute), bytes.NewReader(program), o)
}

// status asks an agent how it is, until one answers.
func (u *updater) status() *pb.GetStatusResponse {
	u.Helper()
	ctx := limited(u, 2*time.Minute)
	for {
		s, err := u.ask(ctx)
		if err == nil {
			return s
		}
		if !pause(ctx, 100*time.Millisecond) {
			u.Fatal(err)
		}
	}
}

func (u *updater) ask(ctx context.Context) (*pb.GetStatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, u.vm.Socket(vmtest.CtlPort), client.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.Alive(ctx); err != nil {
		return nil, err
	}
	return client.Call[*pb.GetStatusResponse](ctx, c, &pb.GetStatusRequest{})
}

// settled waits for what became of an update to a version.
func (u *updater) settled(version string, before *pb.UpdateOutcome) *pb.GetStatusResponse {
	u.Helper()
	for ctx := limited(u, 3*time.Minute); ; {
		s := u.status()
		if client.UpdateOutcome(s, version, before) != nil && s.Update.State != "applying" {
			return s
		}
		if !pause(ctx, 100*time.Millisecond) {
			u.Fatalf("the outcome of the update to %s is not known: %v", version, s.Update)
		}
	}
}

const (
	passes       = "#!/bin/sh\ncase $1 in self-test) exit 0;; esac\n"
	localProgram = "/usr/local/bin/quantix-kvm-agent"
)

// The agent of the package leaves updates to the package manager, unless it is told otherwise: then the new version runs before
// it, and the package stays as it is. One that ends or hangs is replaced by the one before. After a loss of power in the middle
// of a transfer the former version answers, and after one after the reply the new one.
func TestUpdateOfTheAgent(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	u := newUpdater(t, vm)
	next, err := os.ReadFile(unpacked(t, newer))
	if err != nil {
		t.Fatal(err)
	}
	_, err = u.send(next, newer, client.Update{})
	if !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), "it is off") {
		t.Error("without a key in the configuration:", err)
	}
	vm.Must(t, "systemctl restart quantix-kvm-agent")
	_, err = u.send(next, newer, client.Update{})
	if !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), "the package quantix-kvm-agent of dpkg") {
		t.Fatal("an agent of a package:", err)
	}
	if reply, err := u.send(next, newer, client.Update{OverridePackage: true}); err != nil {
		t.Fatal(reply, err)
	}
	if s := u.settled(newer, nil); s.Version != newer || !s.Update.Last.Confirmed {
		t.Fatal(s.Version, s.Update)
	}
	vm.Must(t, "! dpkg -V quantix-kvm-agent | grep /usr/bin && test ! -e /usr/local/bin/.quantix-kvm-agent.update")
	vm.Must(t, "systemctl restart quantix-kvm-agent")
	if exe := vm.Must(t, "readlink /proc/$(systemctl show -P MainPID quantix-kvm-agent)/exe"); exe != localProgram || u.status().Version != newer {
		t.Error(exe, "runs")
	}
	for line, within := range map[string]string{"exit 1": "started 3 times", "exec sleep 3600": "nor ended by itself"} {
		before := u.status().Update.Last
		if reply, err := u.send([]byte(passes+line+"\n"), "1.0.0", client.Update{}); err != nil {
			t.Fatal(reply, err)
		}
		if s := u.settled("1.0.0", before); s.Version != newer || s.Update.Last.Confirmed || !strings.Contains(s.Update.Last.Error, within) {
			t.Error(line, s.Version, s.Update)
		}
	}
	old, err := os.ReadFile(unpacked(t, present))
	if err != nil {
		t.Fatal(err)
	}
	before := u.status().Update.Last
	ctx, cut := context.WithCancel(context.Background())
	half := client.Update{AllowDowngrade: true, Progress: func(done, total int64) {
		if done > total/2 {
			cut()
		}
	}}
	u.sendUntil(ctx, old, present, half)
	u.cut()
	if s := u.status(); s.Version != newer {
		t.Errorf("after a loss of power in the middle of a transfer version %s answers", s.Version)
	}
	vm.Must(t, "test ! -e /usr/local/bin/.quantix-kvm-agent.update")
	reply, err := u.send(old, present, client.Update{AllowDowngrade: true})
	if err != nil || reply.State != pb.UpdateState_UPDATE_STATE_COMPLETE {
		t.Fatal(reply, err)
	}
	u.cut()
	if s := u.settled(present, before); s.Version != present || !s.Update.Last.Confirmed {
		t.Errorf("after a loss of power behind the reply version %s answers: %v", s.Version, s.Update)
	}
}

// sendUntil sends a program until ctx ends.
func (u *updater) sendUntil(ctx context.Context, program []byte, version string, o client.Update) {
	u.Helper()
	progress := o.Progress
	o.Progress = func(done, total int64) {
		if progress(done, total); ctx.Err() != nil {
			panic(ctx)
		}
	}
	defer func() {
		if value := recover(); value != nil && value != ctx {
			panic(value)
		}
	}()
	_, err := u.send(program, version, o)
	u.Fatal("the transfer came to its end:", err)
}

// cut cuts the power, and switches the machine on again.
func (u *updater) cut() {
	u.Helper()
	if err := u.vm.Kill(); err != nil {
		u.Fatal(err)
	}
	if err := u.vm.PowerOn(limited(u, 3*time.Minute)); err != nil {
		u.Fatal(err)
	}
}

// The power is cut at steps of an update: QUANTIX_ROUNDS says at how many of them.
func TestUpdatePowerLoss(t *testing.T) {
	steps := []string{
		"next.run", "trial.note", "confirm.rename", "stage.create", "verify.sync", "verify.signature", "verify.publish", "verify.selftest",
		"restart", "next.count", "confirm.backup", "confirm.sync", "conclude.note", "conclude.clean", "conclude.forget",
	}
	former := "trial.note stage.create verify.sync verify.signature verify.publish verify.selftest"
	rounds := numberFrom(t, "QUANTIX_ROUNDS", 0)
	if rounds == 0 {
		t.Skip("cuts the power at each step: set QUANTIX_ROUNDS to how many of them")
	}
	vm := machine(t, vmtest.Options{})
	u := newUpdater(t, vm)
	dir := t.TempDir()
	programs := map[string][]byte{}
	for _, version := range []string{"1.0.0", "1.1.0"} {
		path := filepath.Join(dir, version)
		flags := "-s -w -X main.version=" + version + " -X main.updatesStopAtEnv=QUANTIX_TEST_STOP_AT"
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, "-ldflags", flags,
			"github.com/quantix-kvm/guest-agent/cmd/quantix-kvm-agent")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		var err error
		if programs[version], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := vm.PutReader(limited(t, time.Minute), bytes.NewReader(programs["1.0.0"]), localProgram, 0o755); err != nil {
		t.Fatal(err)
	}
	const stop = "/run/stop-at"
	// The unit starts the program of the package, which decides what runs: that one stops as well.
	vm.Must(t, "cp "+localProgram+" /usr/bin/new && mv /usr/bin/new "+agentPath+" && mkdir -p /etc/systemd/system/quantix-kvm-agent.service.d && "+
		"printf '[Service]\\nEnvironment=QUANTIX_TEST_STOP_AT="+stop+"\\n' > /etc/systemd/system/quantix-kvm-agent.service.d/stop.conf && "+
		"systemctl daemon-reload && systemctl restart quantix-kvm-agent && sync")
	for _, step := range steps[:min(rounds, len(steps))] {
		before := u.status()
		if before.Version != "1.0.0" {
			t.Fatal(before.Version)
		}
		vm.Must(t, "printf 'wait "+step+"' > "+stop)
		ctx, done := context.WithCancel(context.Background())
		asking := make(chan struct{})
		go func() { // the update, and then a host that asks again and again
			defer close(asking)
			sent, stop := context.WithTimeout(ctx, 3*time.Minute)
			defer stop()
			c, err := client.Dial(sent, vm.Socket(vmtest.CtlPort), client.Options{})
			if err == nil {
				reader := minisign.NewReader(bytes.NewReader(programs["1.1.0"]))
				_, _ = io.Copy(io.Discard, reader)
				signature := reader.SignWithComments(u.key, "version:1.1.0 platform:linux/amd64", "")
				_, _ = c.Update(sent, bytes.NewReader(programs["1.1.0"]), client.Update{Version: "1.1.0", Signature: signature})
				c.Close()
			}
			for ctx.Err() == nil {
				_, _ = u.ask(ctx)
			}
		}()
		eventually(t, vm, step, "test -e "+stop+".reached")
		done()
		<-asking
		u.cut()
		want := "1.1.0"
		if strings.Contains(former, step) {
			want = "1.0.0"
		} else if s := u.settled("1.1.0", before.Update.GetLast()); !s.Update.Last.Confirmed {
			t.Errorf("%s: %v", step, s.Update)
		}
		s := u.status()
		if s.Version != want {
			t.Errorf("after a loss of power at %s version %s answers", step, s.Version)
		}
		vm.Must(t, "test ! -e /usr/local/bin/.quantix-kvm-agent.update && test ! -e /var/lib/quantix-kvm/update-trial.json")
		if s.Version == "1.1.0" {
			if _, err := u.send(programs["1.0.0"], "1.0.0", client.Update{AllowDowngrade: true}); err != nil {
				t.Fatal(err)
			}
			u.settled("1.0.0", s.Update.Last)
			vm.Must(t, "sync")
		}
	}
}
