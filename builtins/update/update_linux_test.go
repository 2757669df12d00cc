package update

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// bench is a room over a scratch program, and who signs for it.
type bench struct {
	*Room
	t         *testing.T
	dir       string
	key       minisign.PrivateKey
	restarted chan struct{}
}

const installed = "#!/bin/sh\necho installed\n"

// works is a program whose self-test succeeds.
const works = "#!/bin/sh\ntest \"$1\" = self-test\n"

func newBench(t *testing.T, change func(*Config)) *bench {
	t.Helper()
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: t.TempDir(), key: private, restarted: make(chan struct{}, 1)}
	c := Config{
		PublicKey: public.String(), State: filepath.Join(b.dir, "state"), Program: filepath.Join(b.dir, "bin", "agent"), Version: "1.0.0",
		SelfTest:     func(version string) []string { return []string{"self-test", version} },
		SelfTestTime: 20 * time.Second, Restart: func() { b.restarted <- struct{}{} },
	}
	if change != nil {
		change(&c)
	}
	for _, dir := range []string{c.State, filepath.Dir(c.Program)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(c.Program, []byte(installed), 0o755); err != nil {
		t.Fatal(err)
	}
	runner := proc.New(proc.Config{Name: fmt.Sprintf("update-test%d", os.Getpid())})
	b.Room = New(&guest.Guest{Live: true, Runner: runner}, c)
	t.Cleanup(func() { b.Room.close() })
	return b
}

func (b *bench) sign(program, comment string) []byte {
	reader := minisign.NewReader(strings.NewReader(program))
	var out bytes.Buffer
	if _, err := out.ReadFrom(reader); err != nil {
		b.t.Fatal(err)
	}
	return reader.SignWithComments(b.key, comment, "by a test")
}

// told is the reply to a request that failed.
func (r *Room) told(err error) *pb.AgentUpdateResponse {
	return r.refusal(err).(*pb.AgentUpdateResponse)
}

func comment(version string) string { return "version:" + version + " platform:" + platform() }

// chunks are the requests that send a program in three parts.
func (b *bench) chunks(program, version string) []*pb.AgentUpdateRequest {
	sum := sha256.Sum256([]byte(program))
	parts := []string{program[:len(program)/3], program[len(program)/3 : len(program)/2], program[len(program)/2:]}
	var list []*pb.AgentUpdateRequest
	for i, part := range parts {
		list = append(list, &pb.AgentUpdateRequest{
			TargetVersion: version, BinaryData: []byte(part), ChunkNumber: uint32(i), IsLastChunk: i == len(parts)-1,
		})
	}
	list[0].ChecksumSha256, list[0].TotalSize = hex.EncodeToString(sum[:]), uint64(len(program))
	list[0].Signature = b.sign(program, comment(version))
	return list
}

// send sends requests as one host, and returns the last reply, or the first error.
func (b *bench) send(list ...*pb.AgentUpdateRequest) (reply *pb.AgentUpdateResponse, err error) {
	for _, in := range list {
		if reply, err = b.update(b.t.Context(), &builtins.Call{Port: "p", Session: "s"}, in); err != nil {
			return nil, err
		}
	}
	return reply, nil
}

// untouched fails unless the installed program is as it was, nothing is on trial, and nothing is left.
func (b *bench) untouched() {
	b.t.Helper()
	if text, err := os.ReadFile(b.config.Program); err != nil || string(text) != installed {
		b.t.Errorf("the installed program is %q, %v", text, err)
	}
	if trial, err := Trial(b.config.State); trial != nil || err != nil {
		b.t.Error(trial, err)
	}
	if left, err := os.ReadDir(filepath.Dir(b.config.Program)); err != nil || len(left) != 1 {
		b.t.Error(left, err)
	}
	if state := b.Status().State; state != idle {
		b.t.Error("the state is", state)
	}
}

// A program that is signed for this version and platform is put beside the installed one, which stays, and runs at the next
// start.
func TestAcceptedProgramIsOnTrial(t *testing.T) {
	b := newBench(t, nil)
	list := b.chunks(works, "1.1.0")
	sent := 0
	for i := range 2 {
		reply, err := b.send(list[i])
		sent += len(list[i].BinaryData)
		if err != nil || !reply.Success || reply.State != pb.UpdateState_UPDATE_STATE_DOWNLOADING {
			t.Fatal(reply, err)
		}
		if int(reply.ProgressPercent) != sent*100/len(works) {
			t.Error(reply)
		}
		if s := b.Status(); s.State != downloading || s.Version != "1.1.0" || s.FormerVersion != "1.0.0" {
			t.Error(s)
		}
	}
	info, err := os.Lstat(stagePath(b.config.Program))
	if err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Error(info, err)
	}
	reply, err := b.send(list[2])
	if err != nil || reply.State != pb.UpdateState_UPDATE_STATE_COMPLETE || !reply.RestartRequired || reply.CurrentVersion != "1.0.0" {
		t.Fatal(reply, err)
	}
	<-b.restarted
	if _, err := b.send(list[0]); !errors.Is(err, fault.ErrBusy) || b.told(err).State != pb.UpdateState_UPDATE_STATE_APPLYING {
		t.Error("a further update before the restart:", err)
	}
	for i := range MaxStarts {
		program, trial, err := Next(b.config.State, b.config.Program, func(string) {})
		if err != nil || program != trial.GetStaged() || trial.GetVersion() != "1.1.0" || trial.GetStarts() != uint32(i+1) {
			t.Fatal(program, trial, err)
		}
		if text, err := os.ReadFile(program); err != nil || string(text) != works {
			t.Errorf("%q %v", text, err)
		}
	}
	if program, _, err := Next(b.config.State, b.config.Program, func(string) {}); program != "" || err == nil {
		t.Error("it is started once more:", program, err)
	}
	after := New(b.guest, b.config) // the agent that comes then
	after.settle()
	b.Room = after
	if last := after.Status().Last; last.GetConfirmed() || last.GetVersion() != "1.1.0" || !strings.Contains(last.GetError(), "started 3 times") {
		t.Error(last)
	}
	if events := after.Notices(); len(events) != 1 || !strings.Contains(events[0].Message, "1.1.0 was taken back") {
		t.Error(events)
	}
	after.last = nil
	b.untouched()
}

// What a transfer leaves when its agent is killed is removed by the next one with the same state directory, and by no other.
func TestLeftoversOfATransfer(t *testing.T) {
	b := newBench(t, nil)
	if _, err := b.send(b.chunks(works, "1.1.0")[0]); err != nil {
		t.Fatal(err)
	}
	other := b.config
	other.State = t.TempDir()
	New(b.guest, other).settle()
	if left, err := os.ReadDir(stagePath(b.config.Program)); err != nil || len(left) != 1 {
		t.Error("another agent removes it:", left, err)
	}
	next := New(b.guest, b.config)
	next.settle()
	if next.trouble != nil {
		t.Error(next.trouble)
	}
	if left, err := os.ReadDir(filepath.Dir(b.config.Program)); err != nil || len(left) != 1 {
		t.Error(left, err)
	}
	if left, err := os.ReadDir(b.config.State); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

// What was exchanged after it was verified is not started.
func TestNextHoldsTheProgramAgainstItsSum(t *testing.T) {
	b := newBench(t, nil)
	if _, err := b.send(b.chunks(works, "1.1.0")...); err != nil {
		t.Fatal(err)
	}
	staged := filepath.Join(stagePath(b.config.Program), programName)
	if err := os.WriteFile(staged, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if program, _, err := Next(b.config.State, b.config.Program, func(string) {}); program != "" || !errors.Is(err, fault.ErrCorrupt) {
		t.Error(program, err)
	}
	trial, err := Trial(b.config.State)
	if err != nil || trial.GetFailed() == "" {
		t.Error(trial, err)
	}
}

// One host at a time; one that leaves makes room for the next, and one that falls silent as well.
func TestTransfersDoNotMix(t *testing.T) {
	b := newBench(t, nil)
	list := b.chunks(works, "1.1.0")
	if _, err := b.send(list[0]); err != nil {
		t.Fatal(err)
	}
	second := func() (*pb.AgentUpdateResponse, error) {
		return b.update(t.Context(), &builtins.Call{Port: "p", Session: "t"}, list[0])
	}
	if _, err := second(); !errors.Is(err, fault.ErrBusy) {
		t.Error(err)
	}
	b.sessionClosed("q", "s")
	b.sessionClosed("p", "x")
	b.work.Wait()
	if _, err := b.send(list[1]); err != nil {
		t.Error("another host's leave ends a transfer:", err)
	}
	b.sessionClosed("p", "s")
	b.work.Wait()
	b.untouched()
	if _, err := second(); err != nil {
		t.Error(err)
	}
	b.transfer.last = time.Now().Add(-2 * idleTime)
	if reply, err := b.send(list...); err != nil || reply.State != pb.UpdateState_UPDATE_STATE_COMPLETE {
		t.Error(reply, err)
	}
}

// While a transaction is open, or a script runs, the last chunk is not taken, and can be sent again.
func TestBusyGuest(t *testing.T) {
	locked, scripts := true, 1
	b := newBench(t, func(c *Config) {
		c.Lock = func(context.Context) (func(), error) {
			if locked {
				return nil, fault.Wrapf(fault.ErrBusy, "busy: a transaction is open")
			}
			return func() {}, nil
		}
		c.Scripts = func() int { return scripts }
	})
	list := b.chunks(works, "1.1.0")
	if _, err := b.send(list[0], list[1]); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := b.update(ctx, &builtins.Call{Port: "p", Session: "s"}, list[2]); err == nil {
		t.Error("it does not wait for a script")
	}
	scripts = 0
	if _, err := b.send(list[2]); !errors.Is(err, fault.ErrBusy) {
		t.Error(err)
	}
	locked = false
	if reply, err := b.send(list[2]); err != nil || reply.State != pb.UpdateState_UPDATE_STATE_COMPLETE {
		t.Error(reply, err)
	}
}

// A fault of the room in the middle of a request costs that update alone: the next one works, and so does who writes.
func TestPanicLeavesNothing(t *testing.T) {
	broken, locked := true, false
	b := newBench(t, func(c *Config) {
		c.Step = func(name string) {
			if name == "verify.signature" && broken {
				panic("by a test")
			}
		}
		c.Lock = func(context.Context) (func(), error) {
			locked = true
			return func() { locked = false }, nil
		}
	})
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		_, _ = b.send(b.chunks(works, "1.1.0")...)
	}()
	if locked {
		t.Error("it is still the one writer")
	}
	b.untouched()
	broken = false
	if reply, err := b.send(b.chunks(works, "1.1.0")...); err != nil || reply.State != pb.UpdateState_UPDATE_STATE_COMPLETE || !locked {
		t.Error(reply, err, locked)
	}
}

// A version on trial whose program was removed meanwhile, as by a package that was installed, does not become the installed
// one.
func TestConfirmWithoutTheProgram(t *testing.T) {
	b := newBench(t, nil)
	if _, err := b.send(b.chunks(works, "1.1.0")...); err != nil {
		t.Fatal(err)
	}
	_, trial, err := Next(b.config.State, b.config.Program, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	c := b.config
	c.Trial, c.Version = trial, "1.1.0"
	next := New(b.guest, c)
	next.settle()
	if s := next.Status(); s.State != applying || s.Version != "1.1.0" || s.RemainingMs == 0 || s.RemainingMs > 120000 {
		t.Error(s)
	}
	if _, err := next.update(t.Context(), &builtins.Call{}, b.chunks(works, "1.2.0")[0]); !errors.Is(err, errAwaiting) {
		t.Error(err)
	}
	if err := os.RemoveAll(stagePath(c.Program)); err != nil {
		t.Fatal(err)
	}
	if err := next.Confirm(); err == nil {
		t.Error("it is confirmed")
	}
	if err := next.GiveUp(errors.New("it cannot be installed")); err != nil {
		t.Error(err)
	}
	if _, err := next.update(t.Context(), &builtins.Call{}, b.chunks(works, "1.2.0")[0]); !errors.Is(err, errReturn) ||
		next.told(err).State != pb.UpdateState_UPDATE_STATE_ROLLING_BACK {
		t.Error(err)
	}
	former := New(b.guest, b.config)
	former.settle()
	if last := former.Status().Last; last.GetConfirmed() || last.GetError() == "" {
		t.Error(last)
	}
	if text, err := os.ReadFile(c.Program); err != nil || string(text) != installed {
		t.Errorf("%q %v", text, err)
	}
}

// What the program minisign signs is accepted.
func TestSignatureOfMinisign(t *testing.T) {
	if _, err := exec.LookPath("minisign"); err != nil {
		t.Skip("no minisign: install it")
	}
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command("minisign", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	run("-G", "-W", "-p", "key.pub", "-s", "key")
	public, err := os.ReadFile(filepath.Join(dir, "key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "agent"), []byte(works), 0o755); err != nil {
		t.Fatal(err)
	}
	run("-S", "-s", "key", "-m", "agent", "-t", comment("1.1.0"))
	signature, err := os.ReadFile(filepath.Join(dir, "agent.minisig"))
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, func(c *Config) { c.PublicKey = strings.Split(string(public), "\n")[1] })
	list := b.chunks(works, "1.1.0")
	list[0].Signature = signature
	if reply, err := b.send(list...); err != nil {
		t.Error(reply, err)
	}
}

// A file of a package is known as one, by whichever package manager has it.
func TestPackagedProgram(t *testing.T) {
	if _, err := exec.LookPath("dpkg-query"); err != nil {
		t.Skip("no dpkg here: run on Debian")
	}
	b := newBench(t, nil)
	for path, want := range map[string]string{"/usr/bin/dpkg-query": "the package dpkg of dpkg", b.config.Program: ""} {
		if got, err := b.owner(t.Context(), path); got != want || err != nil {
			t.Errorf("%s: %q %v", path, got, err)
		}
	}
	b.config.Program, b.config.Preferred = "/usr/bin/dpkg-query", b.config.Program
	list := b.chunks(works, "1.1.0")
	_, err := b.send(list...)
	if !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), "belongs to the package dpkg of dpkg") {
		t.Error(err)
	}
	list[0].OverridePackage = true
	if reply, err := b.send(list...); err != nil {
		t.Fatal(reply, err)
	}
	trial, err := Trial(b.config.State)
	if err != nil || trial.GetTarget() != b.config.Preferred || trial.GetFormer() != "/usr/bin/dpkg-query" {
		t.Error(trial, err)
	}
}
