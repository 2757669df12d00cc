package proc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

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
		case "sleep":
			fmt.Println("sleeping")
			sleep(os.Args[2:])
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
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

// A command that leaves a process with its output behind does not hold up the call.
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

// a command for another user is refused, and nothing is started.
func TestOtherUsersAreRefused(t *testing.T) {
	r := New(Config{})
	defer r.Release()
	made := filepath.Join(t.TempDir(), "made")
	_, err := r.Run(t.Context(), Spec{Argv: []string{"cmd.exe", "/C", "echo x>" + made}, User: &User{Name: "guest"}, Tied: true})
	var start *StartError
	if !errors.As(err, &start) || start.Stage != "user" || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(made); err == nil {
		t.Error("the command ran")
	}
	if _, err := LookupUser(nil, "guest", "", false); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("LookupUser gives %v", err)
	}
}
