package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	freezeReply = 60 * time.Second // what a freeze may take, hooks and all
	thawReply   = 20 * time.Second // what a thaw may take, a new connection included
	trimReply   = time.Hour
)

// freezeFlags are those of freeze.
type freezeFlags struct {
	mounts  []string
	timeout time.Duration
	noHooks bool
}

func (a *app) freezeCommand() *cobra.Command {
	f := &freezeFlags{}
	c := &cobra.Command{
		Use:   "freeze [--mount PATH]... [--timeout 30s] [--] [COMMAND [ARG]...]",
		Short: "freeze the file systems of the guest, while a command of this host runs",
		Long: `freeze has the guest write everything to its disks and hold all further changes, so that a snapshot of them holds a clean
state; it runs COMMAND on this host, such as one that takes the snapshot, and thaws, whatever the command does. Programs in the
guest that write wait meanwhile.

Before the freeze the hooks of the guest run, such as those that have a database write what it has in memory; where one
fails nothing is frozen. --no-hooks leaves them out. Without --mount all file systems are frozen that can be; those that hold
data and cannot, such as vfat or a network share, are named. A file system named by --mount must be frozen, or none is.

Where COMMAND takes longer than --timeout the guest thaws by itself. freeze then fails, since the snapshot may be of a state in
between.

Without COMMAND it prints a token, for thaw.

With --json: QuiesceFilesystemsResponse; with COMMAND {"freeze", "thaw", "exit_code"}, and what COMMAND writes to stdout goes to
stderr.

EXIT STATUS
  That of COMMAND, unless that is 0 and something else failed:
  1   it was not frozen, or it was thawed early`,
		Example: `  quantix-kvm-ctl freeze -- virsh snapshot-create-as web before-upgrade --disk-only --no-metadata
  quantix-kvm-ctl freeze --mount / --mount /srv --timeout 10s -- lvcreate -s -n web-snap /dev/vg/web -L 5G
  token=$(quantix-kvm-ctl freeze --timeout 2m) && take-snapshot; quantix-kvm-ctl thaw "$token"`,
		RunE: func(c *cobra.Command, args []string) error { return a.freeze(c.Context(), f, args) },
	}
	c.Flags().SetInterspersed(false) // what is after COMMAND is its own
	c.Flags().StringArrayVar(&f.mounts, "mount", nil, "freeze the file system mounted at this `path`, and no others")
	c.Flags().DurationVar(&f.timeout, "timeout", 30*time.Second, "thaw by itself after this `time`, in whole seconds, 10m at most")
	c.Flags().BoolVar(&f.noHooks, "no-hooks", false, "do not run the hooks of the guest")
	a.completeMounts(c)
	return c
}

func (a *app) thawCommand() *cobra.Command {
	request := &pb.ThawFilesystemsRequest{}
	c := &cobra.Command{
		Use:   "thaw [--mount PATH]... [TOKEN]",
		Short: "thaw what is frozen in the guest",
		Long: `thaw thaws what freeze froze and gave TOKEN for. Without TOKEN it thaws all that this channel froze, and what a command in the
guest left frozen; with --mount only those file systems.

It fails where nothing is frozen, and where something was thawed early: by its time, by another program, or since the agent was
killed. A snapshot is then not of the state at the freeze.

With --json: ThawFilesystemsResponse.`,
		Example: `  quantix-kvm-ctl thaw
  quantix-kvm-ctl thaw 5e0cb2f6-54b8-4f0a-a1cd-0e7a1b8fa2a9`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			request.QuiesceToken = joined(args...)
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				reply, err := client.Call[*pb.ThawFilesystemsResponse](s.ctx, s.Client, request)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(reply)
				}
				a.noteHooks(reply.Hooks)
				for _, point := range reply.ThawedMountPoints {
					fmt.Fprintln(a.stdout, printable(point))
				}
				a.note("frozen for %.3f s", float64(reply.FrozenDurationMs)/1000)
				return nil
			})
		},
	}
	c.Flags().StringArrayVar(&request.MountPoints, "mount", nil, "thaw the file system mounted at this `path`, and no others")
	a.completeMounts(c)
	return c
}

func (a *app) trimCommand() *cobra.Command {
	request := &pb.TrimRequest{}
	c := &cobra.Command{
		Use:   "trim [--mount PATH]...",
		Short: "discard the unused blocks of the guest's disks",
		Long: `trim tells the disks of the guest which of their blocks its file systems do not use, so that a thin image on this host shrinks.
Without --mount that is done for all file systems whose disk supports it.

With --json: TrimResponse.`,
		Example: "  quantix-kvm-ctl trim\n  quantix-kvm-ctl trim --mount / --minimum 1048576",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), trimReply, func(s *session) error {
				reply, err := client.Call[*pb.TrimResponse](s.ctx, s.Client, request)
				if reply == nil {
					return err
				}
				if err != nil && len(reply.Filesystems) == 0 {
					return err
				}
				if a.json {
					return errors.Join(a.printJSON(reply), err)
				}
				rows := [][]string{{"MOUNTED AT", "TYPE", "TRIMMED"}}
				for _, f := range reply.Filesystems {
					told := size(f.TrimmedBytes)
					if f.Error != "" {
						told = f.Error
					}
					rows = append(rows, []string{f.MountPoint, f.Filesystem, told})
				}
				return errors.Join(table(a.stdout, rows), err)
			})
		},
	}
	c.Flags().StringArrayVar(&request.MountPoints, "mount", nil, "trim the file system mounted at this `path`, and no others")
	c.Flags().Uint64Var(&request.MinimumBytes, "minimum", 0, "leave out what is unused in runs shorter than `n` bytes")
	a.completeMounts(c)
	return c
}

// completeMounts completes --mount with where disks are mounted in the guest.
func (a *app) completeMounts(c *cobra.Command) {
	err := c.RegisterFlagCompletionFunc("mount", func(c *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		list := func(s *session) (words []string, err error) {
			report, err := a.freshReport(s)
			for _, d := range report.GetDisks() {
				words = append(words, d.MountPoint)
			}
			return words, err
		}
		return a.fitting(c.Context(), word, list), cobra.ShellCompDirectiveNoFileComp
	})
	if err != nil {
		panic(err) // the flag is there
	}
}

// request returns the request that the flags ask for.
func (f *freezeFlags) request() (*pb.QuiesceFilesystemsRequest, error) {
	if f.timeout < time.Second || f.timeout%time.Second != 0 || f.timeout > 10*time.Minute {
		return nil, usage("--timeout is a number of whole seconds, 10m at most")
	}
	return &pb.QuiesceFilesystemsRequest{
		MountPoints: f.mounts, TimeoutSeconds: uint32(f.timeout / time.Second), RunPreFreezeScripts: !f.noHooks,
	}, nil
}

func (a *app) freeze(ctx context.Context, f *freezeFlags, argv []string) error {
	request, err := f.request()
	if err != nil {
		return err
	}
	var program string
	if len(argv) > 0 {
		if program, err = exec.LookPath(argv[0]); err != nil { // before anything is frozen
			return &failure{exitNoProgram, err}
		}
	}
	s, err := a.connect(context.WithoutCancel(ctx), noTimeout, 0) // an interrupt ends the command, and then there is a thaw
	if err != nil {
		return err
	}
	defer s.close()
	limited, stop := context.WithTimeout(ctx, freezeReply)
	defer stop()
	frozen, err := client.Call[*pb.QuiesceFilesystemsResponse](limited, s.Client, request)
	if err != nil {
		a.noteHooks(frozen.GetHooks())
		return err
	}
	if len(argv) == 0 {
		return a.printFrozen(frozen)
	}
	a.noteFrozen(frozen)
	ran := a.runOnHost(ctx, program, argv)
	thawed, err := a.thawAfter(s, &pb.ThawFilesystemsRequest{QuiesceToken: frozen.QuiesceToken, RunPostThawScripts: !f.noHooks})
	if err != nil {
		err = fmt.Errorf("the snapshot may not be clean: %w", err)
	}
	a.noteHooks(thawed.GetHooks())
	code := 0
	if ended := (*exec.ExitError)(nil); errors.As(ran, &ended) {
		if code, ran = ended.ExitCode(), nil; code < 0 {
			code, ran = exitFailed, errors.New(ended.Error())
		}
	} else if ran != nil {
		code = exitCannotExecute
	}
	if a.json {
		if printed := a.printRan(frozen, thawed, code); printed != nil {
			return printed
		}
	}
	switch err = errors.Join(ran, err); {
	case code != 0:
		return &failure{code, err}
	case err != nil:
		return &failure{exitFailed, err}
	}
	return nil
}

// runOnHost runs a command of this host. An interrupt comes to it as well, from the terminal; it ends when it wants.
func (a *app) runOnHost(ctx context.Context, program string, argv []string) error {
	c := exec.CommandContext(context.WithoutCancel(ctx), program, argv[1:]...)
	c.Args[0] = argv[0]
	c.Stdin, c.Stdout, c.Stderr = a.stdin, a.stdout.file, a.stderr
	if a.json {
		c.Stdout = a.stderr
	}
	return c.Run()
}

// thawAfter thaws by the connection of the freeze, or, where that is gone, by a new one. A thaw that takes longer than the
// agent waits for it is asked for again, which returns its end.
func (a *app) thawAfter(s *session, request *pb.ThawFilesystemsRequest) (*pb.ThawFilesystemsResponse, error) {
	ctx, stop := context.WithTimeout(context.Background(), thawReply)
	defer stop()
	reply, err := client.Call[*pb.ThawFilesystemsResponse](ctx, s.Client, request)
	for errors.Is(err, fault.ErrBusy) && waitBetweenPolls(ctx) == nil {
		reply, err = client.Call[*pb.ThawFilesystemsResponse](ctx, s.Client, request)
	}
	if !client.Gone(err) {
		return reply, err
	}
	for {
		again, lost := a.connect(ctx, noTimeout, 0)
		if lost == nil {
			reply, err = client.Call[*pb.ThawFilesystemsResponse](ctx, again.Client, request)
			again.close()
			return reply, err
		}
		if waitBetweenPolls(ctx) != nil {
			return nil, lost
		}
	}
}

// printFrozen prints the token, and the rest on stderr.
func (a *app) printFrozen(frozen *pb.QuiesceFilesystemsResponse) error {
	if a.json {
		return a.printJSON(frozen)
	}
	a.noteFrozen(frozen)
	_, err := fmt.Fprintln(a.stdout, frozen.QuiesceToken)
	return err
}

func (a *app) noteFrozen(frozen *pb.QuiesceFilesystemsResponse) {
	a.noteHooks(frozen.Hooks)
	var points []string
	for _, f := range frozen.Frozen {
		if f.Frozen {
			points = append(points, f.MountPoint)
			continue
		}
		a.note("not frozen: %s: %s", f.MountPoint, f.Error)
	}
	slices.Sort(points)
	a.note("frozen until %s by the guest's clock: %s", at(frozen.AutoThawAt), strings.Join(points, ", "))
}

// noteHooks reports hooks that failed.
func (a *app) noteHooks(list []*pb.HookOutcome) {
	for _, hook := range list {
		if hook.Error != "" {
			a.note("the hook %s failed (%s): %s", hook.Name, hook.Phase, hook.Error)
		}
	}
}

// printRan prints both replies and how the command ended.
func (a *app) printRan(frozen *pb.QuiesceFilesystemsResponse, thawed *pb.ThawFilesystemsResponse, code int) error {
	first, err := toJSON(frozen)
	if err != nil {
		return err
	}
	shown := map[string]any{"freeze": first, "thaw": nil, "exit_code": code}
	if thawed != nil {
		if shown["thaw"], err = toJSON(thawed); err != nil {
			return err
		}
	}
	return a.printJSON(shown)
}
