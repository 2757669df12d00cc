package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/cmd/internal/core"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
)

// earlyTime bounds what an early recovery may hold up a boot. The unit ends it a little later by force; what is left is
// taken back by the agent.
const earlyTime = 20 * time.Second

// generateTime bounds what systemd may take to read its units again: a moment on real hardware, half a minute on an emulated
// processor that others use too.
const generateTime = 45 * time.Second

func recoverCommand(f *flags) *cobra.Command {
	var early bool
	c := &cobra.Command{
		Use:   "recover --early",
		Short: "take back at boot what an interrupted script changed, before the network starts",
		Long: `recover --early takes back what scripts had changed that were interrupted by a loss of power or a crash: files and links
only, while nothing but the disk is there. It runs once at boot, before the network is configured, so that a half-written
configuration is never used. What needs running services, or a file system that is not mounted yet, is left to the agent, and
all that is older with it. It gives up after 20 seconds; where units or the network must be read again after that, systemd has
45 seconds for it.

Where nothing was interrupted it does nothing. While an agent runs it takes nothing back: it says so, and the exit code is 1.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if !early {
				return errors.New("recover works at early boot alone: give --early; afterwards the agent does it by itself when it starts")
			}
			return recoverEarly(c.Context(), c.OutOrStdout(), *f)
		},
	}
	c.Flags().BoolVar(&early, "early", false, "as at early boot: files and links, nothing that needs a service")
	return c
}

func recoverEarly(ctx context.Context, w io.Writer, f flags) (err error) {
	f, err = f.absolute()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, earlyTime, errors.New("the boot has waited long enough; the agent goes on"))
	defer cancel()
	if left, err := os.ReadDir(filepath.Join(f.stateDir(), "tx", "open")); err != nil || len(left) == 0 {
		return nil // nothing to do, on nearly every boot
	}
	agentCore, err := core.Open(core.Config{
		Root: f.root, State: f.stateDir(), Rooms: roomConfig(f, config.Default()), MachineChanged: f.machineChanged,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, agentCore.Close()) }()
	again, done := context.WithTimeout(context.WithoutCancel(ctx), earlyTime+generateTime)
	defer done()
	found, err := agentCore.RecoverEarly(ctx, again)
	tellRecovered(w, found)
	return err
}

// tellRecovered prints what became of each transaction.
func tellRecovered(w io.Writer, found []journal.Recovered) {
	for _, r := range found {
		words := "taken back"
		switch {
		case r.Report.Waiting != "":
			words = "left to the agent: waiting for " + r.Report.Waiting
		case r.Report.Halted && r.Report.Err != nil && r.Err != nil:
			words = "left to the agent: " + r.Err.Error()
		case r.Report.Halted:
			words = "left to the agent, as far as it needs services"
		case r.Err != nil:
			words = "given up: " + r.Err.Error()
		case r.Entry != nil:
			words = strings.ToLower(strings.TrimPrefix(r.Entry.GetReply().GetStatus().String(), "SCRIPT_STATUS_"))
		}
		fmt.Fprintf(w, "transaction %s: %s\n", r.ID, words)
	}
}
