package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/cmd/internal/scriptreport"
	"github.com/quantix-kvm/guest-agent/cmd/internal/scripttest"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// scriptCommand is for authors: it needs neither a host nor a configuration.
func scriptCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "script", Short: "commands for people who write scripts", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }, // so that a word that is no command is an error
	}
	c.AddCommand(newCommand(), checkCommand(), trialCommand(), docCommand())
	return c
}

func checkCommand() *cobra.Command {
	var modules []string
	c := &cobra.Command{
		Use:   "check FILE.lua...",
		Short: "report the faults of scripts, without running them",
		Long: `check reports what does not parse, names that nobody knows, globals that were not meant to be, functions and options that this
agent does not have, arguments that are missing or too many, what is wrong with a declaration, and what it declares to need
too much or too little, as far as the text shows it. Each is a line FILE:LINE:COLUMN: message on stdout. A script is only
read; the top level of a declared one is run, where it may do nothing. NAME_test.lua is checked as the test of a script.

EXIT STATUS
  0  no fault was found
  1  there are faults, or a file cannot be read`,
		Example: "  quantix-kvm-agent script check ./site.lua",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return checkScripts(c.Context(), c.OutOrStdout(), args, modules)
		},
	}
	moduleFlag(c, &modules)
	return c
}

func moduleFlag(c *cobra.Command, modules *[]string) {
	c.Flags().StringArrayVar(modules, "module", nil, "a module for require that is sent along with each script, `name=file`; may be repeated")
}

// look has a runner check one script: nothing of one is compiled here.
func look(ctx context.Context, pool *sandbox.Pool, start *pb.RunnerStart) sandbox.Outcome {
	return pool.Run(ctx, sandbox.Job{Start: start, Call: func(context.Context, *pb.RunnerCall) *pb.RunnerReply {
		return &pb.RunnerReply{Error: &pb.RunnerError{Code: "refused", Message: "nothing is called"}}
	}})
}

// checkScripts prints the faults of scripts.
func checkScripts(ctx context.Context, out io.Writer, files, named []string) error {
	modules, err := scriptreport.Modules(named)
	if err != nil {
		return err
	}
	pool := sandbox.New(sandbox.Config{})
	defer pool.Close()
	faults := 0
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		start := &pb.RunnerStart{Name: filepath.Base(file), Source: source, Check: true, Modules: modules, Functions: scripttest.Functions(), Unsupported: all.Unsupported}
		if strings.HasSuffix(file, "_test.lua") {
			start.Functions, start.Unsupported = scripttest.TestFunctions(), nil
		}
		outcome := look(ctx, pool, start)
		for _, f := range outcome.Findings {
			fmt.Fprintf(out, "%s: %s\n", place(file, f), f.Message)
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
func place(file string, e interface {
	GetLine() uint32
	GetColumn() uint32
}) string {
	switch {
	case e.GetLine() == 0:
		return file
	case e.GetColumn() == 0:
		return fmt.Sprintf("%s:%d", file, e.GetLine())
	}
	return fmt.Sprintf("%s:%d:%d", file, e.GetLine(), e.GetColumn())
}
