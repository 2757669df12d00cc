package update

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	// selfTestTime bounds the self-test of a new program: what takes a moment on real hardware takes thirty times as long on
	// an emulated processor.
	selfTestTime = 30 * time.Second
	// ownerTime bounds a question to a package manager.
	ownerTime = 10 * time.Second
)

// verify holds the program that has come, as it is on disk, against its signature, and has it test itself.
func (r *Room) verify(ctx context.Context, t *transfer) error {
	r.config.Step("verify.sync")
	file, err := t.stage.finish()
	if err != nil {
		return err
	}
	defer file.Close()
	r.config.Step("verify.signature")
	if err := t.signed.verify(file, t.sum); err != nil {
		return err
	}
	r.config.Step("verify.publish")
	if err := t.stage.publish(file); err != nil {
		return err
	}
	r.config.Step("verify.selftest")
	return r.selfTest(ctx, filepath.Join(t.stage.path, programName), t.version)
}

// selfTest runs the self-test of a program, which ends with it whatever it does.
func (r *Room) selfTest(ctx context.Context, program, version string) error {
	spec := proc.Spec{
		Argv: append([]string{program}, r.config.SelfTest(version)...), Tied: true, Timeout: r.config.SelfTestTime, MaxOutput: 4096,
	}
	result, err := r.guest.Runner.Run(ctx, spec)
	for range 20 { // a command that is being started may have the file open for writing for a moment
		if !errors.Is(err, syscall.ETXTBSY) {
			break
		}
		time.Sleep(20 * time.Millisecond)
		result, err = r.guest.Runner.Run(ctx, spec)
	}
	switch {
	case err != nil:
		return fault.Refuse("the new program cannot be started: %v", err)
	case result.TimedOut:
		return fault.Refuse("the self-test of the new program did not end within %v", r.config.SelfTestTime)
	case result.Err() != nil:
		return fault.Refuse("the self-test of the new program failed: %v", result.Err())
	}
	return nil
}

// owner returns what a file belongs to, such as the package quantix-kvm-agent of dpkg; empty: to nothing that is known here.
func (r *Room) owner(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, ownerTime)
	defer cancel()
	for _, ask := range []struct {
		tool string
		argv []string
		name func(out string) string
	}{
		{"dpkg", []string{"dpkg-query", "-S", path}, func(out string) string { name, _, _ := strings.Cut(out, ":"); return name }},
		{"rpm", []string{"rpm", "-qf", "--qf", "%{NAME}\\n", path}, func(out string) string { return out }},
		{"apk", []string{"apk", "info", "--who-owns", "-q", path}, func(out string) string { return out }},
		{"pacman", []string{"pacman", "-Qqo", path}, func(out string) string { return out }},
	} {
		result, err := r.guest.Runner.Run(ctx, proc.Spec{Argv: ask.argv, Tied: true, Timeout: ownerTime, MaxOutput: 4096})
		var missing *proc.StartError
		switch {
		case errors.As(err, &missing):
			continue // there is no such tool
		case err != nil:
			return "", err
		case result.TimedOut:
			return "", fault.Wrapf(context.DeadlineExceeded, "%s did not answer within %v what %s belongs to", ask.tool, ownerTime, path)
		case result.Code != 0:
			continue // it is none of its files
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(result.Stdout)), "\n")
		if name := ask.name(first); name != "" {
			return "the package " + name + " of " + ask.tool, nil
		}
	}
	return "", nil
}
