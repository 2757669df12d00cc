package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

func TestMain(m *testing.M) {
	if ChildMain() {
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "be-an-agent" {
		agentMain()
		return
	}
	os.Exit(m.Run())
}

// agentMain runs a command as an agent does, in a process that a test may kill. Arguments: name, cgroup, kind, shell line.
func agentMain() {
	r := New(Config{Name: os.Args[2], Cgroup: os.Args[3], JobCgroup: os.Args[3], Reexec: true, Secret: testSecret})
	released := make(chan error)
	if os.Args[4] == "release" {
		go func() {
			os.Stdin.Read(make([]byte, 1))
			released <- r.Release()
		}()
	}
	_, err := r.Run(context.Background(), Spec{Argv: []string{"/bin/sh", "-c", os.Args[5]}, Tied: os.Args[4] == "tied"})
	if os.Args[4] == "release" {
		err = <-released
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func testSecret() []byte { return []byte("of all agents of a test") }

// kinds are the two kinds of process trees, by Config.Cgroup.
var kinds = map[string]string{"group": "", "session": "none"}

// forEachKind runs a test with each kind of process tree.
func forEachKind(t *testing.T, f func(t *testing.T, r *Runner)) {
	for kind, cgroup := range kinds {
		t.Run(kind, func(t *testing.T) {
			f(t, newRunner(t, Config{Cgroup: cgroup, JobCgroup: cgroup}))
		})
	}
}

// newRunner returns a Runner with a name of its own, and checks at the end of the test that it left nothing.
func newRunner(t *testing.T, config Config) *Runner {
	t.Helper()
	config.Name = fmt.Sprintf("test%d%x", os.Getpid(), time.Now().UnixNano())
	config.Reexec, config.Secret = true, testSecret
	r := New(config)
	if config.Cgroup == "" && needGroups(t, r) {
		r.platform.parents["job"] = r.platform.parents["tied"] // one place to look at
	}
	t.Cleanup(func() {
		if err := r.Release(); err != nil {
			t.Error(err)
		}
		marked := &sessionTree{prefix: markName + config.Name}
		eventually(t, "the end of all that was started, and of its groups", func() bool {
			left := marked.members()
			for _, parent := range r.platform.parents {
				dirs, _ := filepath.Glob(filepath.Join(parent, config.Name+"*"))
				for _, dir := range dirs {
					if unix.Rmdir(dir) != nil {
						left = append(left, 0)
					}
				}
			}
			return len(left) == 0
		})
	})
	return r
}

// needGroups skips a test where this process may not make control groups.
func needGroups(t *testing.T, r *Runner) bool {
	t.Helper()
	g, err := r.platform.newGroup("tied")
	if err != nil {
		t.Skipf("no control group (%v): run as root, or in a delegated cgroup v2 subtree", err)
	}
	g.remove()
	g.close()
	return true
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: run the test binary as root")
	}
}

func sh(line string) []string { return []string{"/bin/sh", "-c", line} }

func run(t *testing.T, r *Runner, spec Spec) *Result {
	t.Helper()
	result, err := r.Run(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// alive reports whether the process runs whose PID a command wrote into a file.
func alive(t *testing.T, pidFile string) bool {
	t.Helper()
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	s, ok := readStat(pid)
	return ok && s.state != "Z"
}

func killFile(t *testing.T, pidFile string) {
	text, _ := os.ReadFile(pidFile)
	if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && pid > 1 {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if !poll(60*time.Second, func() bool { return !alive(t, pidFile) }) {
		t.Error("a process does not die")
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	if !poll(60*time.Second, f) {
		t.Fatal("does not come: " + what)
	}
}

func exists(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Size() > 0
}

func TestResult(t *testing.T) {
	forEachKind(t, func(t *testing.T, r *Runner) {
		for _, c := range []struct {
			line, stdin, stdout, stderr string
			code                        int
		}{
			{line: "true"},
			{line: "echo out; echo err >&2; exit 7", stdout: "out\n", stderr: "err\n", code: 7},
			{line: "cat", stdin: "through", stdout: "through"},
			{line: "kill -9 $$", code: 137},
			{line: "pwd", stdout: "/\n"},
		} {
			spec := Spec{Argv: sh(c.line)}
			if c.stdin != "" {
				spec.Stdin = []byte(c.stdin)
			}
			result := run(t, r, spec)
			if string(result.Stdout) != c.stdout || string(result.Stderr) != c.stderr || result.Code != c.code || result.Truncated {
				t.Errorf("%s: %+v", c.line, result)
			}
		}
	})
}

func TestResultSignal(t *testing.T) {
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none"})
	result := run(t, r, Spec{Argv: sh("kill -9 $$")})
	if result.Signal != syscall.SIGKILL || result.Code != 137 || !strings.Contains(result.How(), "signal 9") {
		t.Errorf("%+v: %s", result, result.How())
	}
	if err := result.Err(); !errors.Is(err, fault.ErrOutput) {
		t.Error(err)
	}
}

func TestTimeoutKillsTree(t *testing.T) {
	forEachKind(t, func(t *testing.T, r *Runner) {
		for _, tied := range []bool{true, false} {
			dir := t.TempDir()
			// One child stays in the session, one leaves it, one ignores SIGTERM.
			line := fmt.Sprintf("cd %s; sleep 300 & echo $! >a; setsid sh -c 'echo $$ >b; exec sleep 300' & "+
				"sh -c 'trap \"\" TERM; echo $$ >c; sleep 300; sleep 300' & echo started; sleep 300", dir)
			r.config.Grace = 200 * time.Millisecond
			result := run(t, r, Spec{Argv: sh(line), Timeout: 2 * time.Second, Tied: tied})
			if !result.TimedOut || string(result.Stdout) != "started\n" || result.Duration > 30*time.Second {
				t.Errorf("%+v", result)
			}
			for _, name := range []string{"a", "b", "c"} {
				if alive(t, filepath.Join(dir, name)) {
					t.Errorf("%s survives", name)
				}
			}
			if err := result.Err(); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
	})
}

func TestGrace(t *testing.T) {
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none", Grace: 10 * time.Second})
	result := run(t, r, Spec{Argv: sh("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"), Timeout: time.Second})
	if string(result.Stdout) != "ready\nbye\n" || result.Code != 3 || !result.TimedOut {
		t.Errorf("%+v", result)
	}
}

func TestCancelKeepsOutput(t *testing.T) {
	forEachKind(t, func(t *testing.T, r *Runner) {
		dir := t.TempDir()
		ctx, cancel := context.WithCancelCause(context.Background())
		because := errors.New("the host said so")
		go func() {
			poll(60*time.Second, func() bool { return exists(filepath.Join(dir, "a")) })
			cancel(because)
		}()
		result, err := r.Run(ctx, Spec{Argv: sh("echo part; echo $$ >" + dir + "/a; sleep 300")})
		if !errors.Is(err, because) || result == nil || string(result.Stdout) != "part\n" || result.Signal != syscall.SIGTERM {
			t.Errorf("%+v %v", result, err)
		}
		if alive(t, dir+"/a") {
			t.Error("it survives")
		}
	})
}

func TestStreamsAreReadConcurrently(t *testing.T) {
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none"})
	result := run(t, r, Spec{Argv: sh("head -c 1048576 /dev/zero >&2; echo end"), Timeout: 30 * time.Second})
	if len(result.Stderr) != 1<<20 || string(result.Stdout) != "end\n" || result.Code != 0 || result.Truncated {
		t.Errorf("%d %q %d", len(result.Stderr), result.Stdout, result.Code)
	}
}

func TestBackgroundChildDoesNotBlockRun(t *testing.T) {
	forEachKind(t, func(t *testing.T, r *Runner) {
		dir := t.TempDir()
		result := run(t, r, Spec{Argv: sh("sleep 600 & echo $! >" + dir + "/a; echo ok")})
		if string(result.Stdout) != "ok\n" || result.Code != 0 || result.Truncated || !result.LeftOpen || result.Duration > 20*time.Second {
			t.Errorf("%+v", result)
		}
		if !alive(t, dir+"/a") {
			t.Error("a command that is not tied is dead")
		}
		killFile(t, dir+"/a")
	})
}

// Output of a process that goes on writing is missing.
func TestBackgroundChildWritesOn(t *testing.T) {
	forEachKind(t, func(t *testing.T, r *Runner) {
		dir := t.TempDir()
		result := run(t, r, Spec{Argv: sh("(while echo more; do sleep 0.01; done) & echo $! >" + dir + "/a; echo ok")})
		if !strings.Contains(string(result.Stdout), "ok\n") || !result.Truncated || !result.LeftOpen {
			t.Errorf("%+v", result)
		}
		killFile(t, dir+"/a")
	})
}

func TestBackgroundChildKeepsWriting(t *testing.T) {
	forEachKind(t, func(t *testing.T, r *Runner) {
		dir := t.TempDir()
		line := fmt.Sprintf("cd %s; (while ! test -e go; do sleep 0.02; done; head -c 300000 /dev/zero; echo done >end) & echo ok", dir)
		run(t, r, Spec{Argv: sh(line)})
		os.WriteFile(dir+"/go", nil, 0o600)
		eventually(t, "the end of a writer without a reader", func() bool { return exists(dir + "/end") })
	})
}

func TestTiedCommandKillsBackgroundChild(t *testing.T) {
	forEachKind(t, func(t *testing.T, r *Runner) {
		dir := t.TempDir()
		result := run(t, r, Spec{Argv: sh("setsid sh -c 'echo $$ >" + dir + "/a; exec sleep 600' & while ! test -s " + dir + "/a; do :; done; echo ok"), Tied: true})
		if string(result.Stdout) != "ok\n" || result.Code != 0 {
			t.Errorf("%+v", result)
		}
		if alive(t, dir+"/a") {
			t.Error("it survives")
		}
	})
}

func TestMaxOutput(t *testing.T) {
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none", MaxOutput: 1 << 20})
	result := run(t, r, Spec{Argv: sh("cat /dev/zero"), Timeout: time.Second, MaxOutput: 1 << 32})
	if len(result.Stdout) != 1<<20 || !result.Truncated || !result.TimedOut || cap(result.Stdout) > 4<<20 {
		t.Errorf("%d %+v", len(result.Stdout), result.Truncated)
	}
	result = run(t, r, Spec{Argv: sh("printf 0123456789; printf abcdefghij >&2"), MaxOutput: 4})
	if string(result.Stdout) != "0123" || string(result.Stderr) != "abcd" || string(result.Tail) != "abcdefghij" || !result.Truncated {
		t.Errorf("%+v", result)
	}
}

func TestStartErrors(t *testing.T) {
	forEachKind(t, func(t *testing.T, r *Runner) {
		dir := t.TempDir()
		write := func(name, content string, mode os.FileMode) string {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, name)
		}
		for _, c := range []struct {
			name, stage string
			spec        Spec
			cause       error
		}{
			{"no program", "program", Spec{Argv: []string{"/no/such"}}, fs.ErrNotExist},
			{"not in path", "program", Spec{Argv: []string{"no-such-program"}}, fs.ErrNotExist},
			{"no directory", "directory", Spec{Argv: sh("true"), Dir: "/no/such"}, fs.ErrNotExist},
			{"directory is a file", "directory", Spec{Argv: sh("true"), Dir: write("file", "", 0o644)}, syscall.ENOTDIR},
			{"not executable", "program", Spec{Argv: []string{write("plain", "x", 0o644)}}, fs.ErrPermission},
			{"no interpreter", "program", Spec{Argv: []string{write("script", "#!/no/such\n", 0o755)}}, fs.ErrNotExist},
			{"nothing", "program", Spec{}, fs.ErrInvalid},
		} {
			_, err := r.Run(context.Background(), c.spec)
			var start *StartError
			if !errors.As(err, &start) || start.Stage != c.stage || !errors.Is(err, c.cause) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if _, err := r.Run(context.Background(), Spec{Argv: []string{"kill -9 1234"}}); !strings.Contains(err.Error(), "one by one") {
			t.Errorf("a command line in the place of a program: %v", err)
		}
	})
}

// A start that fails leaves no descriptor and no control group behind, however often it is tried.
func TestFailedStartsLeaveNothing(t *testing.T) {
	forEachKind(t, func(t *testing.T, r *Runner) {
		interpreter := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(interpreter, []byte("#!/no/such\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		specs := []Spec{
			{Argv: []string{"/no/such"}, Tied: true}, {Argv: []string{"true"}, Dir: "/no/such"}, {Argv: []string{interpreter}, Tied: true},
		}
		if r.checkConfinement() == nil {
			for _, spec := range slices.Clone(specs) {
				spec.Confine = &Confine{}
				specs = append(specs, spec)
			}
		}
		try := func() {
			for _, spec := range specs {
				if _, err := r.Run(t.Context(), spec); err == nil {
					t.Fatalf("%+v was started", spec)
				}
			}
		}
		left := func() int {
			open, err := os.ReadDir("/proc/self/fd")
			if err != nil {
				t.Fatal(err)
			}
			n := len(open)
			for _, parent := range r.platform.parents {
				groups, _ := filepath.Glob(filepath.Join(parent, r.platform.name+"-*"))
				n += len(groups)
			}
			return n
		}
		try() // what is opened once
		before := left()
		for range 20 {
			try()
		}
		for deadline := time.Now().Add(20 * time.Second); left() > before+2 && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		if n := left(); n > before+2 {
			t.Errorf("%d descriptors and groups more after %d failed starts", n-before, 20*len(specs))
		}
	})
}

func TestSpawn(t *testing.T) {
	forEachKind(t, func(t *testing.T, r *Runner) {
		dir := t.TempDir()
		pid, err := r.Spawn(Spec{Argv: sh("while [ ! -e " + dir + "/go ]; do sleep 0.01; done; echo x; echo y >&2; echo $$ >" + dir + "/done")})
		if err != nil || pid <= 1 {
			t.Fatal(pid, err)
		}
		if err := os.WriteFile(dir+"/go", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the end of the command", func() bool { return exists(dir + "/done") })
		eventually(t, "no zombie", func() bool { _, ok := readStat(pid); return !ok })
		if _, err := r.Spawn(Spec{Argv: []string{"/no/such"}}); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
}

func TestLoginEnv(t *testing.T) {
	t.Setenv("SECRET_OF_THE_AGENT", "x")
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none"})
	out := string(run(t, r, Spec{Argv: []string{"env"}}).Stdout)
	for _, want := range []string{"PATH=", "HOME=", "USER=", "LOGNAME=", "SHELL=", "LANG=C.UTF-8"} {
		if !strings.Contains("\n"+out, "\n"+want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
	if strings.Contains(out, "SECRET_OF_THE_AGENT") {
		t.Error("the agent's environment shows through")
	}
}

func openFiles(t *testing.T, dir string) *fsys.Root {
	t.Helper()
	files, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { files.Close() })
	return files
}

func TestAUserIsFoundByNameBeforeNumber(t *testing.T) {
	root := t.TempDir()
	os.Mkdir(root+"/etc", 0o755)
	os.WriteFile(root+"/etc/passwd", []byte("a:x:12:1:A b,,:/a:/bin/a\nalso-a:x:12:2::/:\n12:x:7:7::/:\nshort:x:8:9\nlong:x:9:9::/h:/s:more\n"), 0o644)
	os.WriteFile(root+"/etc/group", []byte("one:x:100:a,short\none:x:101:a\n100:x:5:a,a\nbroken\n"), 0o644)
	files := openFiles(t, root)
	for _, c := range []struct {
		user, group string
		want        User
	}{
		{"a", "", User{Name: "a", UID: 12, GID: 1, Groups: []uint32{100, 101, 5}, Home: "/a", Shell: "/bin/a"}},
		{"12", "", User{Name: "12", UID: 7, GID: 7, Home: "/"}},
		{"8", "one", User{Name: "short", UID: 8, GID: 100, Groups: []uint32{100}}},
		{"9", "100", User{Name: "long", UID: 9, GID: 5, Home: "/h", Shell: "/s"}},
		{"4000", "4001", User{Name: "4000", UID: 4000, GID: 4001}},
	} {
		if u, err := LookupUser(files, c.user, c.group, true); err != nil || !reflect.DeepEqual(*u, c.want) {
			t.Errorf("%s %s: %+v, %v", c.user, c.group, u, err)
		}
	}
	for _, c := range []struct{ user, group, object string }{
		{"none", "none", "none"}, {"a", "none", "group none"}, {"4294967295", "", "4294967295"}, {"a", "4294967295", "group 4294967295"},
	} {
		_, err := LookupUser(files, c.user, c.group, true)
		if start := new(StartError); !errors.As(err, &start) || start.Stage != "user" || start.Object != c.object || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestAccountsThatCannotBeReadAreNoMissingUser(t *testing.T) {
	for file, object := range map[string]string{"passwd": "someone", "group": "some"} {
		root := t.TempDir()
		os.MkdirAll(root+"/etc/"+file, 0o755)
		_, err := LookupUser(openFiles(t, root), "someone", "some", false)
		if start := new(StartError); !errors.As(err, &start) || start.Stage != "user" || start.Object != object || !errors.Is(err, syscall.EISDIR) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestAccountsOfAnImageDoNotLeadOutOfIt(t *testing.T) {
	outside, root := t.TempDir(), t.TempDir()
	os.WriteFile(outside+"/passwd", []byte("someone:x:5:5::/:\n"), 0o644)
	os.Mkdir(root+"/etc", 0o755)
	os.Symlink(outside+"/passwd", root+"/etc/passwd")
	if u, err := LookupUser(openFiles(t, root), "someone", "", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestUserGroups(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	os.Mkdir(root+"/etc", 0o755)
	os.WriteFile(root+"/etc/passwd", []byte("root:x:0:0::/root:/bin/sh\nguest:x:54321:54322:Guest:/home/guest:/bin/bash\n12:x:7:7::/:\n"), 0o644)
	os.WriteFile(root+"/etc/group", []byte("guest:x:54322:\none:x:54400:other,guest\ntwo:x:54401:guest2\n"), 0o644)
	files := openFiles(t, root)
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none"})
	for _, c := range []struct {
		user, group   string
		supplementary bool
		want          string
	}{
		{"guest", "", false, "54321 54322 54322"},
		{"guest", "", true, "54321 54322 54322 54400"},
		{"guest", "two", false, "54321 54401 54401"},
		{"", "one", false, "0 54400 54400"},
		{"54321", "", false, "54321 54322 54322"},
		{"12", "", false, "7 7 7"},
		{"4000", "4001", true, "4000 4001 4001"},
	} {
		u, err := LookupUser(files, c.user, c.group, c.supplementary)
		if err != nil {
			t.Error(err)
			continue
		}
		result := run(t, r, Spec{Argv: sh("echo $(id -u) $(id -g) $(id -G)"), User: u})
		if got := strings.TrimSpace(string(result.Stdout)); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
	for _, c := range [][2]string{{"nobody-knows", ""}, {"guest", "nobody-knows"}} {
		if _, err := LookupUser(files, c[0], c[1], false); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	u, _ := LookupUser(files, "guest", "", false)
	if env := strings.Join(LoginEnv(u), " "); env != "PATH=/usr/local/bin:/usr/bin:/bin HOME=/home/guest USER=guest LOGNAME=guest SHELL=/bin/bash LANG=C.UTF-8" {
		t.Error(env)
	}
}

func TestUserNeedsRoot(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("needs an ordinary user: run the test binary as one")
	}
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none"})
	files := openFiles(t, "/")
	u, err := LookupUser(files, "0", "", false)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Run(context.Background(), Spec{Argv: sh("true"), User: u})
	var start *StartError
	if !errors.As(err, &start) || start.Stage != "user" || !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
	self, err := LookupUser(files, strconv.Itoa(os.Getuid()), strconv.Itoa(os.Getgid()), false)
	if err != nil {
		t.Fatal(err)
	}
	if result := run(t, r, Spec{Argv: sh("id -u"), User: self}); strings.TrimSpace(string(result.Stdout)) != strconv.Itoa(os.Getuid()) {
		t.Errorf("%+v", result)
	}
}

// startAgent starts this test binary as an agent that runs one command.
func startAgent(t *testing.T, name, cgroup, kind, line string) (*exec.Cmd, func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "be-an-agent", name, cgroup, kind, line)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return cmd, func() { in.Write([]byte("x")) }
}

func TestTiedCommandDiesWithAgent(t *testing.T) {
	for kind, cgroup := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := newRunner(t, Config{Cgroup: cgroup, JobCgroup: cgroup})
			dir := t.TempDir()
			line := fmt.Sprintf("cd %s; setsid sleep 300 & echo $! >b; echo $$ >a; sleep 300; true", dir)
			parent := r.platform.parents["tied"]
			if parent == "" {
				parent = "none"
			}
			cmd, _ := startAgent(t, r.config.Name, parent, "tied", line)
			eventually(t, "the command", func() bool { return exists(dir + "/a") })
			cmd.Process.Kill()
			cmd.Wait()
			eventually(t, "the death of the command", func() bool { return !alive(t, dir+"/a") })
			if err := r.Sweep(context.Background()); err != nil {
				t.Error(err)
			}
			if alive(t, dir+"/b") {
				t.Error("its child survives the sweep")
			}
		})
	}
}

func TestJobSurvivesAgent(t *testing.T) {
	for kind, cgroup := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := newRunner(t, Config{Cgroup: cgroup, JobCgroup: cgroup})
			dir := t.TempDir()
			line := fmt.Sprintf("cd %s; echo $$ >a; while ! test -e go; do sleep 0.02; done; head -c 300000 /dev/zero && echo $$ >end", dir)
			parent := r.platform.parents["job"]
			if parent == "" {
				parent = "none"
			}
			cmd, release := startAgent(t, r.config.Name, parent, "release", line)
			eventually(t, "the command", func() bool { return exists(dir + "/a") })
			release()
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			if !alive(t, dir+"/a") {
				t.Error("it died with the agent")
			}
			os.WriteFile(dir+"/go", nil, 0o600)
			eventually(t, "all its output written, with no agent to read it", func() bool { return exists(dir + "/end") })
			eventually(t, "the end of the command", func() bool { return !alive(t, dir+"/a") })
			eventually(t, "an empty group", func() bool {
				if parent == "none" {
					return true
				}
				r.platform.removeStaleGroups(parent)
				left, _ := filepath.Glob(parent + "/" + r.config.Name + "*")
				return len(left) == 0
			})
		})
	}
}

func TestTiedCommandSurvivesThreads(t *testing.T) {
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none"})
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() { // ends threads all the time
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
			}
			done := make(chan struct{})
			go func() { runtime.LockOSThread(); close(done) }()
			<-done
		}
	}()
	for range 20 {
		if result := run(t, r, Spec{Argv: sh("sleep 0.05; echo ok"), Tied: true}); string(result.Stdout) != "ok\n" {
			t.Fatalf("killed by the end of a thread: %+v", result)
		}
	}
	close(stop)
	<-ended
}

func TestReleaseRefusesLaterCalls(t *testing.T) {
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none"})
	if err := r.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Run(context.Background(), Spec{Argv: sh("true")}); !errors.Is(err, ErrReleased) {
		t.Error(err)
	}
	if _, err := r.Spawn(Spec{Argv: sh("true")}); !errors.Is(err, ErrReleased) {
		t.Error(err)
	}
}

func TestOutput(t *testing.T) {
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none"})
	out, err := r.Output(context.Background(), []byte("abc"), "tr", "a-z", "A-Z")
	if err != nil || !bytes.Equal(out, []byte("ABC")) {
		t.Errorf("%s %v", out, err)
	}
	_, err = r.Output(context.Background(), nil, "sh", "-c", "head -c 2000 /dev/zero | tr '\\0' x >&2; echo 'the end' >&2; exit 4")
	if !errors.Is(err, fault.ErrOutput) || !strings.HasPrefix(err.Error(), "exit code 4: xxx") || !strings.HasSuffix(err.Error(), "the end") || len(err.Error()) > 600 {
		t.Error(err)
	}
}

func TestJobCgroup(t *testing.T) {
	r := New(Config{Name: fmt.Sprintf("test%d%x", os.Getpid(), time.Now().UnixNano())})
	needGroups(t, r)
	jobs := r.platform.parents["job"]
	dir := t.TempDir()
	pid, err := r.Spawn(Spec{Argv: sh("cat /proc/self/cgroup >" + dir + "/groups; echo end >" + dir + "/end")})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the command", func() bool { return exists(dir + "/end") })
	groups, _ := os.ReadFile(dir + "/groups")
	if !strings.Contains(string(groups), "0::/"+filepath.Base(jobs)+"/"+r.config.Name+"-job-") {
		t.Errorf("it ran in %s", groups)
	}
	eventually(t, "no process", func() bool { _, ok := readStat(pid); return !ok })
	if err := r.Release(); err != nil {
		t.Error(err)
	}
	if err := unix.Rmdir(jobs); err != nil {
		t.Errorf("the group of the jobs is not empty: %v", err)
	}
}

func TestTwoRunners(t *testing.T) {
	forEachKind(t, func(t *testing.T, r *Runner) {
		dir := t.TempDir()
		other := New(r.config)
		ended := make(chan *Result)
		go func() {
			result, _ := other.Run(context.Background(), Spec{Argv: sh("echo $$ >" + dir + "/a; while ! test -e " + dir + "/go; do sleep 0.02; done; echo ok"), Tied: true})
			ended <- result
		}()
		eventually(t, "the command of the other", func() bool { return exists(dir + "/a") })
		run(t, r, Spec{Argv: sh("sleep 60 &"), Tied: true})
		if err := r.Sweep(context.Background()); err != nil {
			t.Error(err)
		}
		os.WriteFile(dir+"/go", nil, 0o600)
		if result := <-ended; result == nil || string(result.Stdout) != "ok\n" {
			t.Errorf("%+v", result)
		}
	})
}

// Whoever wants to know is told of many commands at once, and of the end of that; not of few.
func TestCrowd(t *testing.T) {
	told := make(chan bool, 10)
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none", Burst: func(many bool) { told <- many }})
	together := func(n int) {
		var all sync.WaitGroup
		for range n {
			all.Go(func() {
				result, err := r.Run(context.Background(), Spec{Argv: []string{"sleep", "1"}})
				if err != nil || result.Code != 0 {
					t.Error(result, err)
				}
			})
		}
		all.Wait()
	}
	together(burstSize - 1)
	if len(told) != 0 {
		t.Error("few commands are taken for many")
	}
	together(2 * burstSize)
	for _, want := range []bool{true, false} {
		if many := <-told; many != want {
			t.Errorf("told %v, want %v", many, want)
		}
	}
}

func TestKillEach(t *testing.T) {
	r := newRunner(t, Config{})
	g, err := r.platform.newGroup("tied")
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	cmd := exec.Command("sh", "-c", "sleep 300 & sleep 300 & wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: g.fd}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "three processes", func() bool { return len(g.members()) == 3 })
	eventually(t, "an empty group", func() bool { g.killEach(); return g.empty() })
	cmd.Wait()
	if err := g.remove(); err != nil {
		t.Error(err)
	}
}

func TestWatchWithoutPidfd(t *testing.T) {
	cmd := exec.Command("sh", "-c", "exit 6")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd, exited: make(chan struct{}), watched: make(chan struct{})}
	c.watch(-1)
	<-c.exited
	if code, signal := c.reap(); code != 6 || signal != 0 {
		t.Error(code, signal)
	}
	c.close()
}

func BenchmarkRun(b *testing.B) {
	for name, config := range map[string]Config{"group": {Name: "bench"}, "session": {Name: "bench", Cgroup: "none", JobCgroup: "none"}} {
		for _, tied := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/tied=%v", name, tied), func(b *testing.B) {
				r := New(config)
				for b.Loop() {
					if _, err := r.Run(context.Background(), Spec{Argv: []string{"/bin/true"}, Tied: tied}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
	b.Run("confined", func(b *testing.B) {
		r := New(Config{Name: "bench", Reexec: true})
		if how := r.Confinement(); how != Confined {
			b.Skip(how)
		}
		for b.Loop() {
			if _, err := r.Run(context.Background(), Spec{Argv: []string{"/bin/true"}, Tied: true, Confine: &Confine{Writable: []string{"/etc/hosts"}}}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			exec.Command("/bin/true").Run()
		}
	})
}

// A process without an environment is told apart from one in the middle of an exec, which has none yet and may carry
// the mark.
func TestEmptyEnvironmentIsSure(t *testing.T) {
	cmd := exec.Command("/bin/sleep", "60")
	cmd.Env = []string{} // nil would be that of the test
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	tree := &sessionTree{prefix: markName + "none"}
	poll(time.Second, func() bool { _, sure := tree.hasMark(process{pid: cmd.Process.Pid}); return sure })
	if member, sure := tree.hasMark(process{pid: cmd.Process.Pid}); member || !sure {
		t.Errorf("member %v, sure %v", member, sure)
	}
	// Each moment of an exec in which the environment reads as empty, and one after it.
	tree.dir = t.TempDir()
	at := filepath.Join(tree.dir, "7001")
	if err := errors.Join(os.Mkdir(at, 0o755), os.WriteFile(filepath.Join(at, "environ"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		startCode, envStart, envEnd int
		sure                        bool
	}{{0, 0, 0, false}, {0, 70, 70, false}, {0, 70, 90, false}, {30, 70, 90, false}, {30, 70, 70, true}, {1, 0, 0, false}} {
		fields := slices.Repeat([]string{"1"}, 50)
		fields[startCode], fields[envEnd-1], fields[envEnd] = strconv.Itoa(c.startCode), strconv.Itoa(c.envStart), strconv.Itoa(c.envEnd)
		if err := os.WriteFile(filepath.Join(at, "stat"), []byte("7001 (x) "+strings.Join(fields, " ")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if member, sure := tree.hasMark(process{pid: 7001}); member || sure != c.sure {
			t.Errorf("%+v: member %v, sure %v", c, member, sure)
		}
	}
}

// Whoever calls his processes those of a command is not believed, and one whom a command of a former agent ran as holds up
// nothing with what he starts.
func TestSweepAndOtherUsers(t *testing.T) {
	needRoot(t)
	r := newRunner(t, Config{Cgroup: "none", JobCgroup: "none"})
	dir, err := os.MkdirTemp("", "proc-test")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	start := func(entry, line string) *exec.Cmd {
		t.Helper()
		cmd := exec.Command("/bin/sh", "-c", line)
		cmd.Env = []string{entry, "PATH=/usr/bin:/bin"}
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Setsid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	former := New(r.config)
	former.platform.tag = "1-1"
	valid := former.platform.mark("tied")
	for _, entry := range []string{
		markName + r.config.Name + ".tied.", markName + r.config.Name + ".tied.1-1.x.1.", valid[:len(valid)-1] + "g", valid + "0",
		strings.Replace(valid, "1-1", "1-2", 1), New(Config{Name: r.config.Name}).platform.mark("tied"),
	} {
		cmd := start(entry, "exec sleep 300")
		if err := r.Sweep(t.Context()); err != nil {
			t.Error(entry, err)
		}
		if err := cmd.Process.Signal(syscall.Signal(0)); err != nil || func() bool { s, ok := readStat(cmd.Process.Pid); return !ok || s.state == "Z" }() {
			t.Errorf("%s: somebody else's process was ended", entry)
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
	one := start(valid, "exec sleep 300")
	if err := r.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if state := func() string { s, _ := readStat(one.Process.Pid); return s.state }(); state != "Z" {
		t.Error("what a former agent left as another user is there still: ", state)
		one.Process.Kill()
	}
	one.Wait()

	// Each starts the next and ends, until stop is there.
	script := filepath.Join(dir, "chain")
	if err := os.WriteFile(script, []byte("test -e stop || { setsid /bin/sh chain & }\ntest -e stop || { setsid /bin/sh chain2 & }\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(script+"2", []byte("exec sleep 0.01\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := start(valid, "exec /bin/sh chain")
	cmd.Wait()
	tree := &sessionTree{prefix: valid}
	eventually(t, "the chain", func() bool { return len(tree.members()) > 0 })
	if err := r.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the chain", func() bool { return tree.empty() })
}

// A process whose memory cannot be read holds up nothing, and is not looked at again.
func TestScanOfAProcessThatHangs(t *testing.T) {
	dir := t.TempDir()
	add := func(pid string, environ func(path string) error) {
		t.Helper()
		at := filepath.Join(dir, pid)
		stat := pid + " (x) S 1 " + pid + " " + pid + strings.Repeat(" 1", 60) + "\n"
		if err := errors.Join(os.Mkdir(at, 0o755), os.WriteFile(filepath.Join(at, "stat"), []byte(stat), 0o644), environ(filepath.Join(at, "environ"))); err != nil {
			t.Fatal(err)
		}
	}
	add("7001", func(path string) error { return unix.Mkfifo(path, 0o600) }) // opened by nobody else
	add("7002", func(path string) error { return os.WriteFile(path, []byte(markName+"x\x00"), 0o600) })
	var known hung
	tree := &sessionTree{prefix: markName, dir: dir, hung: &known}
	for range 3 {
		if got := tree.members(); len(got) != 1 || got[0] != 7002 {
			t.Error(got)
		}
	}
	if len(known.known) != 1 {
		t.Error(known.known)
	}
	w, err := os.OpenFile(filepath.Join(dir, "7001/environ"), os.O_WRONLY|unix.O_NONBLOCK, 0) // the one reader goes on
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
}

// Whose command a process is part of is known while the command runs.
func TestOwnerOf(t *testing.T) {
	forEachKind(t, func(t *testing.T, r *Runner) {
		dir := t.TempDir()
		if owner, ok := r.OwnerOf(os.Getpid()); ok {
			t.Error(owner)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error)
		for _, owner := range []string{"one", "two", ""} {
			line := fmt.Sprintf("cd %s; setsid sleep 300 & echo $! >%[2]s.child.new; echo $$ >%[2]s.new; mv %[2]s.child.new %[2]s.child; mv %[2]s.new %[2]s; wait", dir, "f"+owner)
			go func() {
				_, err := r.Run(ctx, Spec{Argv: sh(line), Tied: true, Owner: owner})
				done <- err
			}()
		}
		for _, owner := range []string{"one", "two", ""} {
			for _, file := range []string{"f" + owner + ".child", "f" + owner} {
				eventually(t, file, func() bool { return exists(dir + "/" + file) })
				text, _ := os.ReadFile(dir + "/" + file)
				pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
				if err != nil {
					t.Fatal(err)
				}
				eventually(t, "the owner of "+file, func() bool { // the command may be quicker than who started it
					got, ok := r.OwnerOf(pid)
					return got == owner && ok == (owner != "")
				})
			}
		}
		cancel()
		for range 3 {
			<-done
		}
		if len(r.running) > 0 {
			t.Error(r.running)
		}
	})
}
