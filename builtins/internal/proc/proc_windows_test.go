package proc

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// TestMain makes this program one that prints its arguments, or one that leaves a process running.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "print-arguments":
			json.NewEncoder(os.Stdout).Encode(os.Args[2:])
			os.Exit(0)
		case "raw":
			os.Stdout.WriteString("\x81\xff")
			os.Exit(0)
		case "console":
			atConsole()
			os.Exit(3)
		case "who":
			_, out := consoleOr(os.Stdin, os.Stdout)
			fmt.Fprintln(out, os.Getenv("USERPROFILE"), os.Getenv("QUANTIX_TEST"))
			os.Exit(0)
		case "spin":
			for n := uint64(0); ; n++ {
				spun = n
			}
		case "fill":
			fill()
			os.Exit(0)
		case "sleep":
			_, out := consoleOr(os.Stdin, os.Stdout)
			fmt.Fprintln(out, "sleeping")
			sleep(os.Args[2:])
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// spun keeps a processor busy.
var spun uint64

// What cannot be started says what is missing: the program, wherever it is looked for, or the directory.
func TestStartFails(t *testing.T) {
	r := New(Config{})
	defer r.Release()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		stage string
		spec  Spec
		want  error
	}{
		{"program", Spec{Argv: []string{"quantix-no-such-program"}}, fs.ErrNotExist},
		{"program", Spec{Argv: []string{file + ".exe"}}, fs.ErrNotExist},
		{"program", Spec{}, fs.ErrInvalid},
		{"directory", Spec{Argv: []string{"cmd.exe"}, Dir: filepath.Join(filepath.Dir(file), "none")}, fs.ErrNotExist},
		{"directory", Spec{Argv: []string{"cmd.exe"}, Dir: file}, syscall.ENOTDIR},
	} {
		_, err := r.Run(t.Context(), c.spec)
		var start *StartError
		if !errors.As(err, &start) || start.Stage != c.stage || !errors.Is(err, c.want) {
			t.Errorf("%v in %q: %v", c.spec.Argv, c.spec.Dir, err)
		}
	}
}

// sleep waits for a minute, or until a file is gone.
func sleep(file []string) {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if len(file) == 0 {
			continue
		}
		if _, err := os.Stat(file[0]); err != nil {
			return
		}
	}
}

// randomArgument is an argument of the characters that quoting is about.
func randomArgument(r *rand.Rand) string {
	const letters = `ab "\'%^&|<>()!,;=` + "\t\u00fc\u20ac"
	all := []rune(letters)
	arg := make([]rune, r.IntN(12))
	for i := range arg {
		arg[i] = all[r.IntN(len(all))]
	}
	return string(arg)
}

// A program gets its arguments as they were given: 10,000 random ones, printed by a program of 500 at a time.
func TestArgumentsArriveAsGiven(t *testing.T) {
	r := New(Config{})
	defer r.Release()
	random := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		argv := []string{os.Args[0], "print-arguments"}
		for range 500 {
			argv = append(argv, randomArgument(random))
		}
		out, err := r.Output(t.Context(), nil, argv...)
		var got []string
		if err == nil {
			err = json.Unmarshal(out, &got)
		}
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, argv[2:]) {
			for i := range argv[2:] {
				if i >= len(got) || got[i] != argv[2+i] {
					t.Fatalf("argument %d: %q arrives otherwise; after it %q", i, argv[2+i], got[min(i, len(got)):])
				}
			}
		}
	}
}

// Each of 10,000 random command lines is read by Windows as the arguments that it was made of.
func TestQuotingIsReadBack(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 10_000 {
		argv := []string{"program"}
		for range random.IntN(6) {
			argv = append(argv, randomArgument(random))
		}
		line := make([]string, len(argv))
		for i, arg := range argv {
			line[i] = syscall.EscapeArg(arg) // as os/exec does
		}
		got, err := windows.DecomposeCommandLine(strings.Join(line, " "))
		if err != nil || !slices.Equal(got, argv) {
			t.Fatalf("%q is read as %q, %v", argv, got, err)
		}
	}
}

// W-7: what a line of shell writes is UTF-8, whatever the code page of the system.
func TestShellLineIsUTF8(t *testing.T) {
	r := New(Config{})
	defer r.Release()
	for line, want := range map[string]string{
		`echo "a  b"`: `"a  b"`, "echo a& echo b": "a\r\nb",
	} {
		out, err := r.Output(t.Context(), nil, "cmd.exe", "/C", line)
		if got := strings.TrimSpace(string(out)); got != want || err != nil {
			t.Errorf("%s writes %q, %v", line, got, err)
		}
	}
	out, err := r.Output(t.Context(), nil, "cmd.exe", "/C", "echo \u00fc")
	switch got := strings.TrimSpace(string(out)); {
	case err != nil:
		t.Error(err)
	case windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil:
		t.Logf("Wine's interpreter writes the ANSI code page where it has no console: %q", got)
	case got != "\u00fc":
		t.Errorf("echo writes %q", got)
	}
	for page, raw := range map[uint32]string{850: "\x81", 1252: "\xfc", 437: "\x81"} {
		if got := string(fromCodePage(page, []byte(raw))); got != "\u00fc" {
			t.Errorf("code page %d: %q", page, got)
		}
	}
	if raw, err := r.Output(t.Context(), nil, os.Args[0], "raw"); err != nil || string(raw) != "\x81\xff" {
		t.Errorf("a program without a shell writes %q, %v", raw, err)
	}
	result, err := r.Run(t.Context(), Spec{Argv: []string{"cmd.exe", "/C", "exit 7"}, Tied: true})
	if err != nil || result.Code != 7 {
		t.Errorf("exit 7 gives %v, %v", result, err)
	}
}

// A batch file gets no argument that its interpreter would act on.
func TestBatchFilesAreNotInjectedInto(t *testing.T) {
	r := New(Config{})
	defer r.Release()
	batch, made := filepath.Join(t.TempDir(), "a.bat"), filepath.Join(t.TempDir(), "made")
	if err := os.WriteFile(batch, []byte("@echo got %1\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := r.Output(t.Context(), nil, batch, "plain"); err != nil || strings.TrimSpace(string(out)) != "got plain" {
		t.Errorf("%q, %v", out, err)
	}
	for _, arg := range []string{`"&echo x>` + made, "%PATH%", "a\r\nb", "x|y"} {
		_, err := r.Run(t.Context(), Spec{Argv: []string{batch, arg}, Tied: true})
		var start *StartError
		if !errors.As(err, &start) || start.Stage != "program" {
			t.Errorf("%q: %v", arg, err)
		}
	}
	if _, err := os.Stat(made); err == nil {
		t.Error("a command was injected")
	}
}

// The end of a tied command is the end of all that it started.
func TestTreeIsKilled(t *testing.T) {
	r := New(Config{})
	defer r.Release()
	begin := time.Now()
	line := `start /b "" "` + os.Args[0] + `" sleep& "` + os.Args[0] + `" sleep`
	result, err := r.Run(t.Context(), Spec{Argv: []string{"cmd.exe", "/C", line},
		Tied: true, Timeout: 3 * time.Second})
	if err != nil || !result.TimedOut || result.LeftOpen {
		t.Fatalf("%+v, %v", result, err)
	}
	if time.Since(begin) > 30*time.Second {
		t.Errorf("it took %v", time.Since(begin))
	}
}

// A command that leaves a process behind with its output does not hold up the call.
func TestOutputThatIsLeftOpen(t *testing.T) {
	r := New(Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	// With this file ends what is left, which would hold the output of this program open as well.
	test := filepath.Join(t.TempDir(), "test")
	if err := os.WriteFile(test, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	line := `start /b "" "` + os.Args[0] + `" sleep "` + test + `"& echo done`
	result, err := r.Run(ctx, Spec{Argv: []string{"cmd.exe", "/C", line}})
	if err != nil || result.Code != 0 || !strings.Contains(string(result.Stdout), "done") || !result.LeftOpen {
		t.Errorf("%+v, %v", result, err)
	}
	if err := r.Release(); err != nil {
		t.Error(err)
	}
}

// a command for another user is refused where Windows makes no logon, and nothing is started.
func TestOtherUsersWithoutALogon(t *testing.T) {
	r := New(Config{})
	defer r.Release()
	r.platform.logon = func(string) (*logon, error) { return nil, windows.ERROR_PRIVILEGE_NOT_HELD }
	made := filepath.Join(t.TempDir(), "made")
	argv := []string{"cmd.exe", "/C", "echo x>" + made}
	_, err := r.Run(t.Context(), Spec{Argv: argv, User: &User{Name: `PC\guest`}, Tied: true})
	var start *StartError
	if !errors.As(err, &start) || start.Stage != "user" || !errors.Is(err, windows.ERROR_PRIVILEGE_NOT_HELD) {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(made); err == nil {
		t.Error("the command ran")
	}
	if _, err := LookupUser(nil, "nobody-of-that-name", "", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LookupUser gives %v", err)
	}
	if _, err := LookupUser(nil, "", "Users", false); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("LookupUser of a group gives %v", err)
	}
}

// A command for another user is started by the token of the logon, with its environment, with and without a terminal. The logon
// here is one of the user of the test.
func TestOtherUserByAToken(t *testing.T) {
	r := New(Config{})
	defer r.Release()
	self, err := windows.GetCurrentProcessToken(), error(nil)
	r.platform.logon = func(name string) (*logon, error) {
		l := &logon{env: []string{"SystemRoot=" + os.Getenv("SystemRoot"), `USERPROFILE=C:\users\other`}, home: t.TempDir()}
		const all = windows.MAXIMUM_ALLOWED
		return l, windows.DuplicateTokenEx(self, all, nil, windows.SecurityImpersonation, windows.TokenPrimary, &l.token)
	}
	spec := Spec{Argv: []string{os.Args[0], "who"}, User: &User{Name: `PC\other`}, Tied: true,
		Env: Environ(LoginEnv(&User{}), map[string]string{"QUANTIX_TEST": "given"})}
	result, err := r.Run(t.Context(), spec)
	if err != nil || strings.TrimSpace(string(result.Stdout)) != `C:\users\other given` {
		t.Errorf("%+v, %v", result, err)
	}
	said := serve(t, r, spec, nil)
	if !strings.Contains(said, `C:\users\other given`) {
		t.Errorf("at a console: %q", said)
	}
}

// A request for a logon holds its own texts.
func TestRequestOfALogon(t *testing.T) {
	memory, err := newS4URequest("b\u00f6b", ".")
	if err != nil {
		t.Fatal(err)
	}
	request := (*s4uRequest)(unsafe.Pointer(&memory[0]))
	name, domain := request.name.String(), request.domain.String()
	if request.kind != s4uLogon || name != "b\u00f6b" || domain != "." || request.name.Length != 6 {
		t.Errorf("%+v", request)
	}
	end := uintptr(unsafe.Pointer(&memory[0])) + uintptr(len(memory))
	if at := uintptr(unsafe.Pointer(request.domain.Buffer)); at+uintptr(request.domain.MaximumLength) != end {
		t.Errorf("the last text ends at %x, the request at %x", at, end)
	}
}

// Limits are those of the job, and a command with limits that nobody would hold is not started.
func TestLimitsOfAJob(t *testing.T) {
	set, held := setJob, limitsHeld
	defer func() { setJob, limitsHeld = set, held }()
	var got windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	setJob = func(_ windows.Handle, class uint32, at uintptr, size uint32) (int, error) {
		if class != windows.JobObjectExtendedLimitInformation || uintptr(size) != unsafe.Sizeof(got) {
			t.Error(class, size)
		}
		got = *(*windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION)(*(*unsafe.Pointer)(unsafe.Pointer(&at)))
		return 1, nil
	}
	limitsHeld = func() error { return nil }
	job, err := newJob(true, Limits{Memory: 1 << 30, Processor: 1500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	windows.CloseHandle(job)
	const flags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | windows.JOB_OBJECT_LIMIT_JOB_MEMORY |
		windows.JOB_OBJECT_LIMIT_JOB_TIME
	basic := got.BasicLimitInformation
	if basic.LimitFlags != flags || basic.PerJobUserTimeLimit != 15_000_000 || got.JobMemoryLimit != 1<<30 {
		t.Errorf("%+v", got)
	}
	limitsHeld = func() error { return errors.ErrUnsupported }
	r := New(Config{})
	defer r.Release()
	var start *StartError
	_, err = r.Run(t.Context(), Spec{Argv: []string{"cmd.exe", "/C", "exit 0"}, Tied: true, Limits: Limits{Memory: 1}})
	if !errors.As(err, &start) || start.Stage != "limits" || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("error is %v", err)
	}
}

// A command over its limits ends: of memory by itself, of processor time by Windows.
func TestLimitsEndACommand(t *testing.T) {
	if wineVersion.Find() == nil {
		t.Skip("Wine holds no limits of a job")
	}
	r := New(Config{})
	defer r.Release()
	result, err := r.Run(t.Context(), Spec{Argv: []string{os.Args[0], "spin"}, Tied: true,
		Limits: Limits{Processor: 300 * time.Millisecond}})
	if err != nil || !result.Exceeded || result.Code == 0 || !strings.Contains(result.How(), "processor time") {
		t.Errorf("%+v, %v", result, err)
	}
	result, err = r.Run(t.Context(), Spec{Argv: []string{os.Args[0], "fill"}, Tied: true, Limits: Limits{Memory: 256 << 20}})
	if err != nil || result.Exceeded || result.Code == 0 {
		t.Errorf("%+v, %v", result, err)
	}
}

// fill takes a gibibyte of memory.
func fill() {
	var all [][]byte
	for range 16 {
		all = append(all, bytes.Repeat([]byte{1}, 64<<20))
	}
	fmt.Println(len(all))
}

// atConsole is a program that only works at a console: it tells its size, and reads a line and the size once more.
func atConsole() {
	in, out := consoleOr(nil, nil)
	size := func() string {
		var info windows.ConsoleScreenBufferInfo
		if err := windows.GetConsoleScreenBufferInfo(windows.Handle(out.Fd()), &info); err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%dx%d", info.Window.Right-info.Window.Left+1, info.Window.Bottom-info.Window.Top+1)
	}
	var mode uint32
	fmt.Fprintf(out, "size=%s std=%v.\n", size(), windows.GetConsoleMode(windows.Handle(os.Stdout.Fd()), &mode) == nil)
	line, err := bufio.NewReader(in).ReadString('\n')
	fmt.Fprintf(out, "read=%q size=%s %v.\n", strings.TrimSpace(line), size(), err)
}

// consoleOr returns the console of this process by its names, or what is given where it has none: Wine does not make it the
// standard streams.
func consoleOr(in, out *os.File) (conin, conout *os.File) {
	open := func(name string, otherwise *os.File) *os.File {
		if file, err := os.OpenFile(name, os.O_RDWR, 0); err == nil {
			return file
		}
		return otherwise
	}
	return open("CONIN$", in), open("CONOUT$", out)
}

// serve runs a command at a console, and returns what it wrote. typed is called while it runs.
func serve(t *testing.T, r *Runner, spec Spec, typed func(live *Live, said func() string)) string {
	t.Helper()
	var mu sync.Mutex
	var all []byte
	said := func() string {
		mu.Lock()
		defer mu.Unlock()
		return string(all)
	}
	done := make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	result, err := r.Serve(ctx, spec, Serving{
		Input: typed != nil, Terminal: &Terminal{Rows: 30, Cols: 100},
		Started: func(l *Live) {
			go func() {
				defer close(done)
				if typed != nil {
					typed(l, said)
				}
			}()
		},
		Output: func(fd int, data []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, data...)
			return true
		},
	})
	if result == nil {
		t.Fatal(err)
	}
	<-done
	if err != nil {
		t.Errorf("%+v, %v, %q", result, err, said())
	} else if typed != nil && (result.Code != 3 || result.LeftOpen) {
		t.Errorf("%+v, %q", result, said())
	}
	return said()
}

// A command with a terminal is at a console of the size that was asked for, reads what is typed, and sees another size.
func TestConsole(t *testing.T) {
	r := New(Config{})
	defer r.Release()
	said := serve(t, r, Spec{Argv: []string{os.Args[0], "console"}}, func(l *Live, said func() string) {
		for end := time.Now().Add(30 * time.Second); !strings.Contains(said(), "size=") && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		if err := l.Resize(20, 70); err != nil && wineVersion.Find() != nil { // Wine has it not
			t.Error(err)
		}
		if n, err := l.Write(t.Context(), []byte("typed\r")); err != nil || n != 6 {
			t.Error(n, err)
		}
	})
	if !strings.Contains(said, "size=100x30") || !strings.Contains(said, `read="typed"`) {
		t.Errorf("%q", said)
	}
	if wineVersion.Find() != nil && (!strings.Contains(said, "size=70x20") || !strings.Contains(said, "std=true")) {
		t.Errorf("its size was not changed, or it is not on the standard streams: %q", said)
	}
}

// The end of a console is the end of what still runs in it.
func TestConsoleIsHungUp(t *testing.T) {
	r := New(Config{Drain: 10 * time.Second})
	defer r.Release()
	ctx, cancel := context.WithCancel(t.Context())
	begin := time.Now()
	_, err := r.Serve(ctx, Spec{Argv: []string{os.Args[0], "sleep"}}, Serving{
		Terminal: &Terminal{}, Started: func(*Live) {},
		Output: func(_ int, data []byte) bool { cancel(); return true },
	})
	if !errors.Is(err, context.Canceled) || time.Since(begin) > 50*time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
}
