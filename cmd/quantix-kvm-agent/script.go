package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/cmd/internal/scripttest"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// scriptCommand is for authors: it needs neither a host nor a configuration.
func scriptCommand() *cobra.Command {
	c := &cobra.Command{Use: "script", Short: "help for who writes scripts", Args: cobra.NoArgs}
	c.AddCommand(&cobra.Command{
		Use:   "check FILE.lua...",
		Short: "tell the faults of scripts, without running them",
		Long: `check tells what does not parse, names that nobody knows, globals that were not meant to be, functions and options that this
agent does not have, arguments that are missing or too many, and what is wrong with a declaration. Each is a line FILE:LINE:
message on stdout. A script is only read; the top level of a declared one is run, where it may do nothing.

EXIT STATUS
  0  no fault was found
  1  there are faults, or a file cannot be read`,
		Example: "  quantix-kvm-agent script check ./site.lua",
		Args:    cobra.MinimumNArgs(1),
		RunE:    func(c *cobra.Command, args []string) error { return checkScripts(c.Context(), c.OutOrStdout(), args) },
	})
	c.AddCommand(trialCommand())
	return c
}

// checkScripts has a runner look at each script: nothing of one is compiled here.
func checkScripts(ctx context.Context, out io.Writer, files []string) error {
	pool := sandbox.New(sandbox.Config{})
	defer pool.Close()
	functions := scripttest.Functions()
	faults := 0
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		outcome := pool.Run(ctx, sandbox.Job{
			Start: &pb.RunnerStart{Name: filepath.Base(file), Source: source, Check: true, Functions: functions, Unsupported: all.Unsupported},
			Call: func(context.Context, *pb.RunnerCall) *pb.RunnerReply {
				return &pb.RunnerReply{Error: &pb.RunnerError{Code: "refused", Message: "a check calls nothing"}}
			},
		})
		for _, f := range outcome.Findings {
			fmt.Fprintf(out, "%s:%d: %s\n", file, f.Line, f.Message)
		}
		faults += len(outcome.Findings)
		if e := outcome.Error; e != nil {
			faults++
			fmt.Fprintf(out, "%s: %s\n", place(file, e), e.Message)
		}
	}
	switch faults {
	case 0:
		return nil
	case 1:
		return errors.New("there is a fault")
	}
	return fmt.Errorf("there are %d faults", faults)
}

// place is where an error is, as far as that is known.
func place(file string, e *pb.ScriptError) string {
	switch {
	case e.Line == 0:
		return file
	case e.Column == 0:
		return fmt.Sprintf("%s:%d", file, e.Line)
	}
	return fmt.Sprintf("%s:%d:%d", file, e.Line, e.Column)
}
