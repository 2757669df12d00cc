package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// updateFlags are the flags of update.
type updateFlags struct {
	signature               string
	downgrade, force, await bool
}

func (a *app) updateCommand() *cobra.Command {
	var f updateFlags
	c := &cobra.Command{
		Use:   "update FILE",
		Short: "replace the agent by another version",
		Long: `update sends a program of the agent to the guest, where the agent verifies its signature, has it test itself, and starts it
in its own place. If it hears a host in time it is the installed version; else, and where it ends or hangs, the former version
comes back by itself, also after a loss of power. The guest must trust the key: update.public_key of its agent.yaml, without
which updates are off.

The signature is that of minisign, FILE.minisig unless --signature names another file. Its trusted comment says which version
the program is, and for which platform:

  minisign -S -m quantix-kvm-agent -t 'version:1.2.3 platform:linux/amd64'

A script that runs in the guest is waited for. An agent that belongs to a package of the guest is left to the package manager,
unless --force-package has the new version run before it, from /usr/local/bin; a package that is installed later comes first
again.

With --wait update goes on until the new version has heard it, and prints which version answers. That contact confirms the
update. Without it something else must reach the agent in time, such as the Node Daemon, or the former version comes back.

With --json: AgentUpdateResponse; with --wait {"version","former_version","confirmed","error"}, of the agent that answers.

EXIT STATUS
  0  the program is verified, and the agent restarts; with --wait: the new version is the installed one
  1  the transfer failed, or the program is none that the guest can run
  4  refused: not signed, by another key, for another platform, older, of a package, or updates are off; or busy
  5  with --wait: the former version came back`,
		Example: `  quantix-kvm-ctl update --wait quantix-kvm-agent
  quantix-kvm-ctl --timeout 5m update --wait --force-package build/quantix-kvm-agent`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.update(c.Context(), args[0], f) },
	}
	c.Flags().StringVar(&f.signature, "signature", "", "`file` with the signature (default FILE.minisig)")
	c.Flags().BoolVar(&f.downgrade, "allow-downgrade", false, "also where the version is older than the present one, where update.allow_downgrade of agent.yaml allows it")
	c.Flags().BoolVar(&f.force, "force-package", false, "also where the present agent belongs to a package of the guest")
	c.Flags().BoolVar(&f.await, "wait", false, "return when the new version has answered, or the former one is back")
	return c
}

// updateWait is how long --wait waits from the restart on, unless --timeout says otherwise: three starts of a version that
// hears nobody take less with the default of the agent's configuration.
const updateWait = 10 * time.Minute

func (a *app) update(ctx context.Context, path string, f updateFlags) error {
	if f.signature == "" {
		f.signature = path + ".minisig"
	}
	signature, err := os.ReadFile(f.signature)
	if err != nil {
		return fmt.Errorf("the signature: %w", err)
	}
	version, err := signedVersion(signature)
	if err != nil {
		return fmt.Errorf("%s: %w", f.signature, err)
	}
	program, err := os.Open(path)
	if err != nil {
		return err
	}
	defer program.Close()
	var before *pb.GetStatusResponse
	var reply *pb.AgentUpdateResponse
	var socket string
	err = a.with(ctx, noTimeout, func(s *session) error {
		socket = s.path
		if before, err = client.Call[*pb.GetStatusResponse](s.ctx, s.Client, &pb.GetStatusRequest{}); err != nil {
			return err
		}
		m := a.meter(filepath.Base(path))
		defer m.clear()
		reply, err = s.Update(s.ctx, program, client.Update{
			Version: version, Signature: signature, AllowDowngrade: f.downgrade, OverridePackage: f.force, Progress: m.progress(),
		})
		return err
	})
	if err != nil {
		return err
	}
	if !f.await {
		if a.json {
			return a.printJSON(reply)
		}
		a.note("version %s is verified and starts; the former one, %s, comes back unless a host is heard in time",
			version, reply.CurrentVersion)
		return nil
	}
	limit := updateWait
	if a.timeout > 0 {
		limit = a.timeout
	}
	late := fault.Wrapf(context.DeadlineExceeded, "it was not known within %v which version stays", limit)
	limited, stop := context.WithTimeoutCause(ctx, limit, late)
	defer stop()
	return a.awaitUpdate(limited, socket, version, before)
}

// signedVersion returns the version that the trusted comment of a signature names. The agent verifies it.
func signedVersion(signature []byte) (string, error) {
	for line := range strings.Lines(string(signature)) {
		comment, ok := strings.CutPrefix(line, "trusted comment: ")
		if !ok {
			continue
		}
		for word := range strings.FieldsSeq(comment) {
			if version, ok := strings.CutPrefix(word, "version:"); ok {
				return version, nil
			}
		}
		return "", errors.New("the trusted comment names no version: sign with -t 'version:1.2.3 platform:linux/amd64'")
	}
	return "", errors.New("no file of minisign")
}

// awaitUpdate waits until an agent reports the outcome of an update, and prints which version answers.
func (a *app) awaitUpdate(ctx context.Context, path, version string, before *pb.GetStatusResponse) error {
	for {
		now, err := a.askStatus(ctx, path)
		if err == nil && now.Session != before.Session {
			if last := client.UpdateOutcome(now, version, before.GetUpdate().GetLast()); last != nil {
				return a.printUpdate(now.Version, last)
			}
		}
		if err := waitBetweenPolls(ctx); err != nil {
			return err
		}
	}
}

// askStatus connects and asks an agent how it is.
func (a *app) askStatus(ctx context.Context, path string) (*pb.GetStatusResponse, error) {
	dialing, stop := context.WithTimeout(ctx, connectTimeout)
	defer stop()
	c, err := client.Dial(dialing, path, client.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.Alive(dialing); err != nil {
		return nil, err
	}
	return client.Call[*pb.GetStatusResponse](dialing, c, &pb.GetStatusRequest{})
}

// printUpdate prints which version answers.
func (a *app) printUpdate(version string, last *pb.UpdateOutcome) error {
	if a.json {
		err := a.printJSON(map[string]any{
			"version": version, "former_version": last.FormerVersion, "confirmed": last.Confirmed, "error": last.Error,
		})
		if err != nil {
			return err
		}
	} else if _, err := fmt.Fprintf(a.stdout, "version %s answers\n", printable(version)); err != nil {
		return err
	}
	if !last.Confirmed {
		return &failure{exitRolledBack, fmt.Errorf("version %s was taken back: %s", last.Version, last.Error)}
	}
	return nil
}
