package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/debian"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "wintest:", err)
		code := 1
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			code = exit.ExitCode()
		}
		os.Exit(code)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 1 && args[0] == "exec" {
		return runBinary(ctx, args[1:])
	}
	if err := debian.Install(ctx, missing); err != nil {
		return err
	}
	m, err := openMachine(ctx)
	if err != nil {
		return err
	}
	defer m.close()
	if len(args) > 0 && args[0] == "run" {
		return m.wine(ctx, args[1:]...)
	}
	if len(args) == 0 {
		return m.test(ctx, runs...)
	}
	return m.test(ctx, args)
}

// test runs go test for Windows with each list of arguments as it is, prints what failed (with -v everything), and the
// counts of all.
func (m *machine) test(ctx context.Context, runs ...[]string) error {
	all := slices.Concat(runs...)
	res := results{out: os.Stdout, verbose: verbose(all)}
	programs, err := m.buildPrograms(ctx, slices.ContainsFunc(all, wantsPackages))
	if err != nil {
		return err
	}
	for _, args := range runs {
		err = errors.Join(err, m.goTest(ctx, programs, args, &res))
	}
	res.summary()
	if files, err := otherFiles(ctx, m, all); err == nil && files > 0 {
		fmt.Printf("not built for Windows: %d test files of these packages\n", files)
	}
	return err
}

// goTest runs go test once.
func (m *machine) goTest(ctx context.Context, programs string, args []string, res *results) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	base := []string{"test", "-json", "-vet=off", "-count=1", "-timeout=10m", "-overlay=" + m.overlay, "-exec=" + self + " exec"}
	cmd := exec.CommandContext(ctx, "go", append(base, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Env = append(m.buildEnv(), "QUANTIX_WINDOWS_PROGRAMS=Z:"+strings.ReplaceAll(programs, "/", `\`))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	for d := json.NewDecoder(out); ; {
		var e event
		if err := d.Decode(&e); err != nil {
			if !errors.Is(err, io.EOF) {
				fmt.Fprintln(os.Stderr, "wintest: output of go test:", err)
			}
			break
		}
		res.add(e)
	}
	return cmd.Wait()
}

func (m *machine) buildEnv() []string {
	return append(m.env(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
}

// wantsPackages reports whether an argument of go test may name the package that installs the MSIs.
func wantsPackages(arg string) bool {
	return strings.Contains(arg, "winguest") || arg == "./..." || arg == "./cmd/..." || arg == "./cmd/internal/..."
}

// buildPrograms builds agent and ctl for the tests that start them, and returns their directory. msi: the MSIs as well.
func (m *machine) buildPrograms(ctx context.Context, msi bool) (dir string, err error) {
	dir = filepath.Join(m.dir, "programs")
	const cmds = "github.com/quantix-kvm/guest-agent/cmd/"
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-overlay="+m.overlay, "-o", dir+"/",
		cmds+"quantix-kvm-agent", cmds+"quantix-kvm-ctl")
	cmd.Env = m.buildEnv()
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go build: %w", err)
	}
	if !msi {
		return dir, nil
	}
	return dir, m.buildPackages(ctx, dir)
}

// packageVersions are those of the MSIs that are built beside the programs: one is the upgrade of the other.
var packageVersions = []string{"0.0.1", "0.0.2"}

// buildPackages builds the MSIs.
func (m *machine) buildPackages(ctx context.Context, dir string) error {
	for _, version := range packageVersions {
		cmd := exec.CommandContext(ctx, filepath.Join(m.module, "cmd", "quantix-kvm-agent", "package", "windows", "build.sh"),
			dir, version, "-s -w -X main.version="+version)
		cmd.Env = append(m.buildEnv(), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -overlay="+m.overlay))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build the MSI: %w\n%s", err, out)
		}
	}
	return nil
}

func verbose(args []string) bool {
	for _, a := range args {
		switch strings.TrimLeft(a, "-") {
		case "v", "test.v", "v=true":
			return true
		}
	}
	return false
}

// otherFiles returns how many test files of the packages among the arguments are for other systems alone.
func otherFiles(ctx context.Context, m *machine, args []string) (int, error) {
	list := []string{"list", "-f", `{{range .IgnoredGoFiles}}{{println .}}{{end}}`}
	for _, a := range args {
		if strings.HasPrefix(a, "./") || strings.HasPrefix(a, "github.com/") {
			list = append(list, a)
		}
	}
	cmd := exec.CommandContext(ctx, "go", list...)
	cmd.Env = m.buildEnv()
	out, err := cmd.Output()
	return strings.Count(string(out), "_test.go\n"), err
}
