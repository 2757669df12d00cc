package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// noise is content of which no two parts are alike.
func noise(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// linkTo is a link over a proxy.
func linkTo(t *testing.T, p *agenttest.Proxy) *client.Link {
	t.Helper()
	dial := func(ctx context.Context) (*client.Client, error) {
		c, err := client.Dial(ctx, p.Socket, client.Options{})
		if err != nil {
			return nil, err
		}
		if err := c.Alive(ctx); err != nil {
			c.Close()
			return nil, err
		}
		return c, nil
	}
	c, err := dial(ctxFor(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	l := client.NewLink(c, dial)
	t.Cleanup(func() { l.Close(); c.Close() })
	return l
}

// What a killed agent left of an upload is gone when the next one has started, without another upload into that directory. What
// a living one is taking stays.
func TestStagedUploadsOfAKilledAgentAreRemoved(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no name has the end of a line in it there")
	}
	dir, state := t.TempDir(), t.TempDir()
	begin := func(a *agenttest.Agent, path string) {
		t.Helper()
		_, err := client.Call[*pb.FileWriteResponse](ctxFor(t, time.Minute), a.Client(t, client.Options{}), &pb.FileWriteRequest{Path: path, Data: []byte("half")})
		if err != nil {
			t.Fatal(err)
		}
	}
	staged := func(sub string) (n int) {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	for _, sub := range []string{"a", "line\nbreak", "living"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	living := agenttest.Start(t, agenttest.Options{})
	killed := agenttest.Start(t, agenttest.Options{State: state})
	begin(killed, dir+"/a/f")
	begin(killed, dir+"/a/g")
	begin(killed, dir+"/line\nbreak/f")
	begin(killed, dir+"/living/f")
	begin(living, dir+"/living/g")
	killed.Kill()
	if staged("a") != 2 || staged("living") != 2 {
		t.Fatal("nothing was left")
	}
	agenttest.Start(t, agenttest.Options{State: state})
	for deadline := time.Now().Add(time.Minute); staged("a")+staged("line\nbreak")+staged("living") != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d, %d and %d are left", staged("a"), staged("line\nbreak"), staged("living"))
		}
	}
}

// rising checks that a bar which shows a resumed copy never goes back, and ends at the whole.
type rising struct {
	t    *testing.T
	done int64
	back int
}

func (r *rising) at(done, total int64) {
	if done < r.done {
		r.back++
	}
	r.done = done
	if total >= 0 && done > total {
		r.t.Errorf("%d of %d bytes", done, total)
	}
}

const copied = 4 << 20

// A pull over a connection that is cut again and again goes on where it stopped: the file is whole, nothing is read twice but
// what was under way, and the bar never goes back.
func TestPullGoesOnAfterCuts(t *testing.T) {
	root, to := t.TempDir(), t.TempDir()
	content := noise(copied, 1)
	if err := os.WriteFile(filepath.Join(root, "file"), content, 0o640); err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{Root: root})
	p := agenttest.NewProxy(t, a, func(int) (int64, int64) { return 0, 700_123 })
	bar := rising{t: t}
	local := filepath.Join(to, "local")
	got, err := linkTo(t, p).PullFile(ctxFor(t, 120*time.Second), "/file", local, client.PullOptions{Progress: bar.at, SHA256: true})
	if err != nil || got.Size != copied || got.Mode != modeHere(0o640) {
		t.Fatal(got, err)
	}
	if now, err := os.ReadFile(local); err != nil || !bytes.Equal(now, content) {
		t.Error("the file is not the one of the guest: ", err)
	}
	if bar.back != 0 || bar.done != copied {
		t.Errorf("the bar went back %d times and ended at %d", bar.back, bar.done)
	}
	if n := p.Connections.Load(); n < 6 {
		t.Errorf("only %d connections", n)
	}
	if n := p.Carried.Load(); n > copied*3/2 {
		t.Errorf("%d bytes were carried for %d", n, copied)
	}
	left, err := os.ReadDir(to)
	if err != nil || len(left) != 1 {
		t.Error("left behind: ", left, err)
	}
}

// swap replaces a file of the guest by another one.
func swap(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// A file that was replaced while the connection was lost is copied from its beginning: the copy is the new one, whole. Where
// what was written cannot be taken back, the copy fails.
func TestPullOfAFileThatChangedBetween(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a file that is read is not replaced there")
	}
	root := t.TempDir()
	path := filepath.Join(root, "file")
	before, after := noise(copied, 1), noise(copied-1000, 2)
	a := agenttest.Start(t, agenttest.Options{Root: root})
	var replaced atomic.Bool
	p := agenttest.NewProxy(t, a, func(n int) (int64, int64) {
		if n == 0 {
			return 0, 1_000_000
		}
		if !replaced.Swap(true) {
			swap(t, path, after)
		}
		return 0, 0
	})
	swap(t, path, before)
	local := filepath.Join(t.TempDir(), "local")
	if _, err := linkTo(t, p).PullFile(ctxFor(t, 60*time.Second), "/file", local, client.PullOptions{SHA256: true}); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(local); err != nil || !bytes.Equal(now, after) {
		t.Errorf("%d bytes that are not the new file's (%v)", len(now), err)
	}

	swap(t, path, before)
	p.Connections.Store(0)
	replaced.Store(false)
	l := linkTo(t, p)
	var out bytes.Buffer
	_, err := l.PullTo(ctxFor(t, 60*time.Second), "/file", &out, client.PullOptions{})
	if !errors.Is(err, fault.ErrChanged) || !bytes.HasPrefix(before, out.Bytes()) {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
}

// A push over a connection that is cut again and again: the target is the old file or the new one at every moment, the new one
// in the end, and nothing lies beside it.
func TestPushGoesOnAfterCuts(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "file")
	before, after := noise(100_000, 1), noise(copied, 2)
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{Root: root})
	p := agenttest.NewProxy(t, a, func(n int) (int64, int64) {
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) && !bytes.Equal(now, after) {
			t.Errorf("connection %d found %d bytes that are neither file (%v)", n, len(now), err)
		}
		return []int64{300, 70_000, 600_000, 1_000_000}[min(n, 3)], 0
	})
	bar := rising{t: t}
	sent, err := linkTo(t, p).PushFile(ctxFor(t, 120*time.Second), "/file", bytes.NewReader(after), client.PushOptions{SHA256: true, Size: copied, Progress: bar.at})
	if err != nil || sent != copied || bar.done != copied {
		t.Fatal(sent, bar.done, err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, after) {
		t.Error("the file is not the one that was sent: ", err)
	}
	if n := p.Connections.Load(); n < 6 {
		t.Errorf("only %d connections", n)
	}
	if n := p.Carried.Load(); n > 3*copied { // some 1.2 MiB are under way when a connection is cut
		t.Errorf("%d bytes were carried for %d", n, copied)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		left, err := os.ReadDir(root)
		if err == nil && len(left) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("left behind: ", left, err)
		}
	}
}

// What cannot be read again is not sent again; the error is that of the connection, and the target stays.
func TestPushOfAPipeEndsWithTheConnection(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "file")
	if err := os.WriteFile(path, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{Root: root})
	p := agenttest.NewProxy(t, a, func(int) (int64, int64) { return 500_000, 0 })
	_, err := linkTo(t, p).PushFile(ctxFor(t, 60*time.Second), "/file", struct{ io.Reader }{bytes.NewReader(noise(copied, 1))}, client.PushOptions{})
	if !client.Gone(err) {
		t.Error(err)
	}
	if now, err := os.ReadFile(path); err != nil || string(now) != "before" {
		t.Errorf("%d bytes, %v", len(now), err)
	}
}

// A tree arrives whole over a connection that is cut in the middle of listings and of files.
func TestTreesGoOnAfterCuts(t *testing.T) {
	from, root, to := t.TempDir(), t.TempDir(), t.TempDir()
	want := map[string][]byte{}
	for i, name := range []string{"a", "d/b", "d/e/c", "d/e/empty", "z"} {
		path := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		want[name] = noise(i%4*200_000, uint64(i))
		if err := os.WriteFile(path, want[name], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := agenttest.Start(t, agenttest.Options{Root: root})
	p := agenttest.NewProxy(t, a, func(n int) (int64, int64) { return 750_000, 300_000 })
	l := linkTo(t, p)
	if got, err := l.PushTree(ctxFor(t, 120*time.Second), from, "/tree", client.Tree{}); err != nil || got.Files != 5 || got.Directories != 3 {
		t.Fatal(got, err)
	}
	if got, err := l.PullTree(ctxFor(t, 120*time.Second), "/tree", filepath.Join(to, "back"), client.Tree{SHA256: true}); err != nil || got.Files != 5 || got.Directories != 3 {
		t.Fatal(got, err)
	}
	for name, content := range want {
		if now, err := os.ReadFile(filepath.Join(to, "back", name)); err != nil || !bytes.Equal(now, content) {
			t.Errorf("%s: %d bytes for %d (%v)", name, len(now), len(content), err)
		}
	}
	if n := p.Connections.Load(); n < 4 {
		t.Errorf("only %d connections", n)
	}
}

// A file that is written to under a pull is found out by its digest.
func TestDigestFindsAChangeInPlace(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "file")
	if err := os.WriteFile(path, noise(200_000, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{Root: root})
	c := a.Client(t, client.Options{})
	local := filepath.Join(t.TempDir(), "local")
	_, err := c.PullFile(ctxFor(t, 60*time.Second), "/file", local, client.PullOptions{SHA256: true, Progress: func(done, total int64) {
		if done != total {
			return
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt([]byte("changed"), 10)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Error(err)
		}
	}})
	if !errors.Is(err, fault.ErrChanged) {
		t.Error(err)
	}
	if _, err := os.Stat(local); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file whose digest did not hold was left behind: ", err)
	}
}

// An agent that is restarted in the middle of a pull is found again.
func TestPullOverARestartOfTheAgent(t *testing.T) {
	agenttest.NeedsAPlaceForAnother(t)
	root := t.TempDir()
	content := noise(copied, 3)
	if err := os.WriteFile(filepath.Join(root, "file"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	first := agenttest.Start(t, agenttest.Options{Root: root})
	p := agenttest.NewProxy(t, first, func(n int) (int64, int64) { return 0, 0 })
	l := linkTo(t, p)
	var killed sync.Once
	local := filepath.Join(t.TempDir(), "local")
	_, err := l.PullFile(ctxFor(t, 120*time.Second), "/file", local, client.PullOptions{SHA256: true, Progress: func(done, _ int64) {
		if done < copied/4 {
			return
		}
		killed.Do(func() {
			first.Kill()
			second := agenttest.Start(t, agenttest.Options{Root: root, State: first.State})
			if err := errors.Join(os.Remove(first.Socket), os.Symlink(second.Socket, first.Socket)); err != nil {
				t.Error(err)
			}
		})
	}})
	if err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(local); err != nil || !bytes.Equal(now, content) {
		t.Errorf("%d bytes, %v", len(now), err)
	}
}

// A script whose connection is cut runs once, and its reply comes: where the request was on its way, where the script ran,
// and where its reply was on the way back.
func TestRunOverCutConnections(t *testing.T) {
	root := t.TempDir()
	a := agenttest.Start(t, agenttest.Options{Root: root})
	source := strings.Repeat("-- what makes a request that takes its time\n", 2000) +
		`file.append(params.path, "ran\n") for i = 1, 50 do progress(i / 50, "going on") for _ = 1, 2e4 do end end return ("x"):rep(100000)`
	for _, c := range []struct{ up, down int64 }{{0, 0}, {300, 0}, {50_000, 0}, {88_000, 0}, {0, 4000}, {0, 8000}, {0, 50_000}, {0, 100_000}} {
		path := fmt.Sprintf("up %d down %d", c.up, c.down)
		t.Run(path, func(t *testing.T) {
			p := agenttest.NewProxy(t, a, func(n int) (int64, int64) {
				if n == 0 {
					return c.up, c.down
				}
				return 0, 0
			})
			params, err := structpb.NewStruct(map[string]any{"path": "/" + path})
			if err != nil {
				t.Fatal(err)
			}
			reply, err := linkTo(t, p).RunScript(ctxFor(t, 60*time.Second), &pb.RunScriptRequest{Source: []byte(source), Params: params, Events: true}, time.Second)
			if err != nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(reply.Result.GetStringValue()) != 100000 {
				t.Error(reply.GetError(), err)
			}
			if content, err := os.ReadFile(filepath.Join(root, path)); err != nil || string(content) != "ran\n" {
				t.Errorf("%q %v", content, err)
			}
			if n := p.Connections.Load(); (n > 1) != (c.up+c.down > 0) {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// A script whose agent is killed in the middle is told of as interrupted, and is not run again.
func TestRunOverAKillOfTheAgent(t *testing.T) {
	agenttest.NeedsAPlaceForAnother(t)
	root := t.TempDir()
	first := agenttest.Start(t, agenttest.Options{Root: root})
	l := linkTo(t, agenttest.NewProxy(t, first, func(int) (int64, int64) { return 0, 0 }))
	began := filepath.Join(root, "began")
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		for {
			if _, err := os.Stat(began); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		first.Kill()
		second := agenttest.Start(t, agenttest.Options{Root: root, State: first.State})
		if err := errors.Join(os.Remove(first.Socket), os.Symlink(second.Socket, first.Socket)); err != nil {
			t.Error(err)
		}
	}()
	reply, err := l.RunScript(ctxFor(t, 60*time.Second), &pb.RunScriptRequest{Source: []byte(`file.write("/began", "") while true do end`)}, time.Second)
	<-killed
	if err != nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || reply.Error.GetKind() != "interrupted" {
		t.Error(reply, err)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

// What a killed agent left may take longer to be taken back than a request waits for: the script is told of as interrupted
// then, too, and not as refused.
func TestRunOverAKillWithASlowRecovery(t *testing.T) {
	agenttest.NeedsAPlaceForAnother(t)
	dir := t.TempDir()
	first := agenttest.Start(t, agenttest.Options{})
	l := linkTo(t, agenttest.NewProxy(t, first, func(int) (int64, int64) { return 0, 0 }))
	began := filepath.Join(dir, "began")
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		for {
			if _, err := os.Stat(began); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		first.Kill()
		second := agenttest.Start(t, agenttest.Options{State: first.State})
		if err := errors.Join(os.Remove(first.Socket), os.Symlink(second.Socket, first.Socket)); err != nil {
			t.Error(err)
		}
	}()
	source := fmt.Sprintf(`exec.run({"true"}, {undo = {"sleep", "5"}}) file.write(%q, "") while true do end`, began)
	reply, err := l.RunScript(ctxFor(t, 60*time.Second), &pb.RunScriptRequest{Source: []byte(source)}, time.Second)
	<-killed
	if err != nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || reply.Error.GetKind() != "interrupted" {
		t.Error(reply, err)
	}
	if _, err := os.Stat(began); err == nil {
		t.Error("the file is left")
	}
}

// A job is awaited over a restart of the agent that stops in order.
func TestJobIsAwaitedOverARestart(t *testing.T) {
	agenttest.NeedsAPlaceForAnother(t)
	first := agenttest.Start(t, agenttest.Options{})
	l := linkTo(t, agenttest.NewProxy(t, first, func(int) (int64, int64) { return 0, 0 }))
	var id string
	err := l.Do(ctxFor(t, 20*time.Second), func(ctx context.Context, c *client.Client) error {
		started, err := c.Detach(ctx, client.Command{Line: "sleep 2; exit 7"})
		id = started.GetJobId()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	restarted := make(chan struct{})
	go func() {
		defer close(restarted)
		first.AwaitLog(t, `"op":"exec_start"`, 1)
		time.Sleep(200 * time.Millisecond) // so that the job is waited for
		first.Stop()
		second := agenttest.Start(t, agenttest.Options{State: first.State})
		if err := os.Symlink(second.Socket, first.Socket); err != nil {
			t.Error(err)
		}
	}()
	_, job, err := l.Job(ctxFor(t, 60*time.Second), &pb.ListJobsRequest{JobId: id, WaitSeconds: 25})
	<-restarted
	if err != nil || job.Exit.GetExitCode() != 7 {
		t.Error(job, err)
	}
}
