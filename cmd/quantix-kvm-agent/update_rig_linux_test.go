package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"aead.dev/minisign"

	"github.com/quantix-kvm/guest-agent/builtins/update"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// stopEnv is what the agents of these tests read where they are to end: see stopAtStep.
const stopEnv = "QUANTIX_TEST_STOP_AT"

// versions are agents that were built under a version.
var versions struct {
	mu    sync.Mutex
	paths map[string]string
}

// agentOf builds the agent of this tree under a version, beside the one that agenttest takes away when the tests have ended.
func agentOf(t *testing.T, version string) string {
	t.Helper()
	versions.mu.Lock()
	defer versions.mu.Unlock()
	if path := versions.paths[version]; path != "" {
		return path
	}
	own, err := agenttest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(own), "agent-"+version)
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path,
		"-ldflags", "-s -w -X main.version="+version+" -X main.updatesStopAtEnv="+stopEnv, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	if versions.paths == nil {
		versions.paths = map[string]string{}
	}
	versions.paths[version] = path
	return path
}

// supervised is an agent that is started again whenever it ends, as a service manager does it.
type supervised struct {
	t                       *testing.T
	dir, program            string
	state, socket, stopFile string
	public                  string
	key                     minisign.PrivateKey
	log                     *os.File
	args, env               []string

	mu      sync.Mutex
	process *os.Process
	starts  int
	over    bool
	ended   chan struct{}
}

// supervise installs an agent in a scratch directory and keeps it running. managed says that a service manager listens.
func supervise(t *testing.T, version string, managed bool) *supervised {
	t.Helper()
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "upd-") // short: a unix socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &supervised{
		t: t, dir: dir, program: filepath.Join(dir, "bin", "agent"), state: filepath.Join(dir, "state"), socket: filepath.Join(dir, "s"),
		stopFile: filepath.Join(dir, "stop-at"), key: private, public: public.String(), ended: make(chan struct{}),
	}
	config := filepath.Join(dir, "agent.yaml")
	text := "update:\n  public_key: " + s.public + "\n  confirm_seconds: 10\n  allow_downgrade: true\n"
	err = errors.Join(os.Mkdir(filepath.Dir(s.program), 0o755), os.WriteFile(config, []byte(text), 0o600))
	if err == nil {
		err = copyProgram(agentOf(t, version), s.program)
	}
	if err == nil {
		s.log, err = os.Create(filepath.Join(dir, "log"))
	}
	if err != nil {
		t.Fatal(err)
	}
	s.args = []string{"--config", config, "--device", "unix:" + s.socket, "--state", s.state, "--log-level", "debug"}
	s.env = append(os.Environ(), stopEnv+"="+s.stopFile, "NOTIFY_SOCKET=", "WATCHDOG_USEC=")
	if managed {
		manager, err := net.ListenPacket("unixgram", filepath.Join(dir, "notify"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { manager.Close() })
		go io.Copy(io.Discard, packets{manager})
		s.env = append(s.env, "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	}
	go s.run()
	t.Cleanup(s.stop)
	return s
}

func copyProgram(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o755)
}

// packets reads what was sent to a socket.
type packets struct{ net.PacketConn }

func (p packets) Read(b []byte) (n int, err error) {
	n, _, err = p.ReadFrom(b)
	return n, err
}

func (s *supervised) run() {
	defer close(s.ended)
	for {
		cmd := exec.Command(s.program, s.args...)
		cmd.Env, cmd.Stderr, cmd.Stdout = s.env, s.log, s.log
		s.mu.Lock()
		if s.over {
			s.mu.Unlock()
			return
		}
		err := cmd.Start()
		s.process = cmd.Process
		s.starts++
		s.mu.Unlock()
		if err != nil {
			s.t.Error(err)
			return
		}
		fmt.Fprintf(s.log, "--- ended: %v\n", cmd.Wait())
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *supervised) stop() {
	s.mu.Lock()
	s.over = true
	process := s.process
	s.mu.Unlock()
	if process != nil {
		_ = process.Kill()
	}
	<-s.ended
	if s.t.Failed() {
		text, _ := os.ReadFile(s.log.Name())
		s.t.Logf("the log:\n%s", text[max(0, len(text)-20000):])
	}
	s.log.Close()
}

// dial connects to the agent that answers, which is a contact of a host.
func (s *supervised) dial(o client.Options) *client.Client {
	s.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		c, err := client.Dial(ctx, s.socket, o)
		if err == nil {
			if _, err = c.Ready(ctx); err == nil {
				cancel()
				return c
			}
			c.Close()
		}
		cancel()
		if time.Now().After(deadline) {
			s.t.Fatal("no agent answers: ", err)
		}
	}
}

// status asks the agent that answers how it is.
func (s *supervised) status() *pb.GetStatusResponse {
	s.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; {
		c := s.dial(client.Options{})
		status, err := client.Call[*pb.GetStatusResponse](ctxFor(s.t, 10*time.Second), c, &pb.GetStatusRequest{})
		c.Close()
		if err == nil {
			return status
		}
		if time.Now().After(deadline) {
			s.t.Fatal(err)
		}
	}
}

// signed signs a program by the trusted key.
func (s *supervised) signed(program []byte, version string) []byte {
	reader := minisign.NewReader(bytes.NewReader(program))
	if _, err := io.Copy(io.Discard, reader); err != nil {
		s.t.Fatal(err)
	}
	return reader.SignWithComments(s.key, "version:"+version+" platform:linux/"+runtime.GOARCH, "")
}

// update sends a program as a version.
func (s *supervised) update(program []byte, version string, downgrade bool) (*pb.AgentUpdateResponse, error) {
	s.t.Helper()
	c := s.dial(client.Options{})
	defer c.Close()
	return c.Update(ctxFor(s.t, 60*time.Second), bytes.NewReader(program), client.Update{
		Version: version, Signature: s.signed(program, version), AllowDowngrade: downgrade,
	})
}

// settled waits for what became of the update to a version. It is a contact of a host.
func (s *supervised) settled(version string, after *pb.UpdateOutcome) *pb.GetStatusResponse {
	s.t.Helper()
	var status *pb.GetStatusResponse
	eventually(s.t, "the outcome of the update to "+version, func() bool {
		status = s.status()
		return client.UpdateOutcome(status, version, after) != nil
	})
	return status
}

// clean fails unless the installed program is that of a version, and nothing of an update is left.
func (s *supervised) clean(version string) {
	s.t.Helper()
	have, err := os.ReadFile(s.program)
	want, e := os.ReadFile(agentOf(s.t, version))
	if errors.Join(err, e) != nil || !bytes.Equal(have, want) {
		s.t.Errorf("the installed program is not version %s: %v %v", version, err, e)
	}
	entries, err := os.ReadDir(filepath.Dir(s.program))
	if err != nil {
		s.t.Error(err)
	}
	for _, e := range entries {
		if name := e.Name(); name != "agent" && name != "agent.bak" {
			s.t.Error("it leaves", name)
		}
	}
	if trial, err := update.Trial(s.state); trial != nil || err != nil {
		s.t.Error(trial, err)
	}
}

// works runs a script and a command, which both start programs of the agent's own file.
func (s *supervised) works() {
	s.t.Helper()
	c := s.dial(client.Options{})
	defer c.Close()
	awaitRecovered(s.t, c)
	script := fmt.Sprintf(`file.write(%q, "x") return exec.run({"/bin/echo", "yes"}, {readonly = true}).stdout`, filepath.Join(s.dir, "out"))
	reply, err := client.Call[*pb.RunScriptResponse](ctxFor(s.t, 60*time.Second), c, &pb.RunScriptRequest{Source: []byte(script)})
	if err != nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || reply.Result.GetStringValue() != "yes\n" {
		s.t.Error(reply, err)
	}
}

func readAll(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
