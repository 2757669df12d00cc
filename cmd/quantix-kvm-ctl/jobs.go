package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// jobWaitSeconds is how long the guest may delay one reply, in seconds; a longer wait takes several requests.
const jobWaitSeconds = 20

// logChunk is how much of a log one reply has at most, in bytes of each stream.
const logChunk = 1 << 20

func (a *app) jobsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "jobs [list]",
		Short: "see and end the commands that exec --detach started",
		Long: `jobs lists the commands that exec --detach started, the newest first. A job lives on when the agent is restarted or updated.
The guest keeps the last 50 that ended for 14 days, and of each of their streams the last 2 to 4 MiB. A job that was running
when the guest went down is listed as lost: nobody knows how it ended. What exec runs without --detach is listed as attached
while it runs: it ends with its connection.

ID may be the beginning of an id, or the name that exec --name gave.

With --json: an array of Job.`,
		Example: `  quantix-kvm-ctl exec --detach -- apt-get -y dist-upgrade
  quantix-kvm-ctl jobs
  quantix-kvm-ctl jobs logs -f 20260102-030405-abcdef
  quantix-kvm-ctl jobs wait 20260102-030405-abcdef && echo it went well`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.jobsList(c) },
	}
	c.AddCommand(&cobra.Command{
		Use: "list", Short: "list jobs, the newest first", Args: cobra.NoArgs,
		Long:    "list lists the jobs, the newest first, as jobs alone does.\n\nWith --json: an array of Job.",
		Example: "  quantix-kvm-ctl --json jobs list | jq -r '.[] | select(.state == \"JOB_STATE_RUNNING\").id'",
		RunE:    func(c *cobra.Command, _ []string) error { return a.jobsList(c) },
	}, a.jobsShowCommand(), a.jobsLogsCommand(), a.jobsWaitCommand(), a.jobsKillCommand())
	return c
}

func (a *app) jobsList(c *cobra.Command) error {
	return a.with(c.Context(), requestTimeout, func(s *session) error {
		list, err := s.Jobs(s.ctx)
		if err != nil {
			return err
		}
		if a.json {
			array, err := listJSON(list)
			if err != nil {
				return err
			}
			return a.printJSON(array)
		}
		rows := [][]string{{"ID", "NAME", "STATE", "EXIT", "STARTED", "ENDED", "COMMAND"}}
		for _, job := range list {
			rows = append(rows, []string{job.Id, dash(job.Name), jobState(job), jobExit(job), at(job.Started), at(job.Ended), job.Command})
		}
		return table(a.stdout, rows)
	})
}

func jobState(job *pb.Job) string {
	if job.Attached && job.State == pb.JobState_JOB_STATE_RUNNING {
		return "attached"
	}
	return strings.ToLower(strings.TrimPrefix(job.State.String(), "JOB_STATE_"))
}

func jobExit(job *pb.Job) string {
	if job.Exit == nil {
		return "-"
	}
	return strconv.Itoa(int(job.Exit.ExitCode))
}

func (a *app) jobsShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "show one job",
		Long: `show shows one job: its command, how it is or how it ended, and how much it wrote.

With --json: a Job.`,
		Example: "  quantix-kvm-ctl jobs show 20260102-030405-abcdef",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.complete(false, jobIDs),
		RunE: func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				id, err := jobID(s, args[0])
				if err != nil {
					return err
				}
				_, job, err := s.Job(s.ctx, &pb.ListJobsRequest{JobId: id})
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(job)
				}
				return table(a.stdout, jobRows(job))
			})
		},
	}
}

func jobRows(job *pb.Job) [][]string {
	rows := [][]string{{"id", job.Id}, {"name", job.Name}, {"state", jobState(job)}, {"command", job.Command}, {"directory", job.Directory}, {"user", job.User},
		{"pid", fmt.Sprint(job.Pid)}, {"started", at(job.Started)}, {"ended", at(job.Ended)}, {"exit", jobExit(job)},
		{"error", job.Exit.GetError()}, {"stdout", size(job.StdoutBytes)}, {"stderr", size(job.StderrBytes)}}
	shown := rows[:0]
	for _, row := range rows {
		if row[1] != "" {
			shown = append(shown, row)
		}
	}
	return shown
}

func (a *app) jobsLogsCommand() *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use:   "logs ID",
		Short: "show what a job wrote",
		Long: `logs prints what a job wrote to its output and, on stderr, to its error output. With --follow it goes on until the job ends.
Where output is missing, since it is too old or was written while the disk was full, a note says how much. It goes on when the
connection is lost or the agent is restarted.`,
		Example: "  quantix-kvm-ctl jobs logs -f 20260102-030405-abcdef",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.complete(false, jobIDs),
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.hasNoJSON("jobs logs"); err != nil {
				return err
			}
			return a.with(c.Context(), noTimeout, func(s *session) error {
				id, err := jobID(s, args[0])
				if err != nil {
					return err
				}
				link := a.newLink(s, true)
				defer link.Close()
				return a.jobsLogs(s, link, id, follow)
			})
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the job ends")
	return c
}

func (a *app) jobsLogs(s *session, link *client.Link, id string, follow bool) error {
	request := &pb.ListJobsRequest{JobId: id, MaxBytes: logChunk}
	if follow {
		request.WaitSeconds = jobWaitSeconds
	}
	for {
		reply, job, err := link.Job(s.ctx, request)
		if err != nil {
			return err
		}
		missing := reply.StdoutOffset - request.StdoutOffset + reply.StderrOffset - request.StderrOffset
		if missing > 0 {
			a.note("jobs: %s of the output are missing here: too old, or written while the disk was full", size(missing))
		}
		if _, err := a.stdout.Write(reply.Stdout); err != nil {
			return err
		}
		if _, err := a.stderr.Write(reply.Stderr); err != nil {
			return err
		}
		request.StdoutOffset = reply.StdoutOffset + uint64(len(reply.Stdout))
		request.StderrOffset = reply.StderrOffset + uint64(len(reply.Stderr))
		if len(reply.Stdout)+len(reply.Stderr) == 0 && (!follow || job.State != pb.JobState_JOB_STATE_RUNNING) {
			return nil
		}
	}
}

func (a *app) jobsWaitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "wait ID",
		Short: "wait for the end of a job",
		Long: `wait waits until a job has ended, or until --timeout, and exits with the code of its command as exec does. A job that
is lost gives 125. It goes on when the connection is lost or the agent is restarted, as by a job that updates it, and gives up
when no agent answers for a minute.

With --json: the Job.`,
		Example: "  quantix-kvm-ctl jobs wait --timeout 1h 20260102-030405-abcdef",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.complete(false, jobIDs),
		RunE: func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), noTimeout, func(s *session) error {
				id, err := jobID(s, args[0])
				if err != nil {
					return err
				}
				link := a.newLink(s, true)
				defer link.Close()
				return a.jobsWait(s, link, id)
			})
		},
	}
}

func (a *app) jobsWait(s *session, link *client.Link, id string) error {
	for {
		_, job, err := link.Job(s.ctx, &pb.ListJobsRequest{JobId: id, WaitSeconds: jobWaitSeconds})
		if err != nil {
			return err
		}
		if job.State == pb.JobState_JOB_STATE_RUNNING {
			continue
		}
		if a.json {
			if err := a.printJSON(job); err != nil {
				return err
			}
		}
		if job.Exit == nil {
			return &failure{exitExecFailed, fmt.Errorf("job %s is lost: nobody knows how it ended", id)}
		}
		if job.Exit.Error != "" && !a.json {
			a.note("jobs: %s", job.Exit.Error)
		}
		return exitWith(int(job.Exit.ExitCode), job.Exit.TimedOut)
	}
}

func (a *app) jobsKillCommand() *cobra.Command {
	var signal string
	c := &cobra.Command{
		Use:   "kill ID | NAME",
		Short: "end a job with all that it started",
		Long: `kill ends a job: TERM to all of its processes, and after two seconds KILL. It returns at once; wait returns when the job is over.
With --signal the process group of the command gets that signal and nothing else happens.`,
		Example: `  quantix-kvm-ctl jobs kill 20260102-030405-abcdef
  quantix-kvm-ctl jobs kill --signal HUP 20260102-030405-abcdef`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(false, jobIDs),
		RunE: func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				id, err := jobID(s, args[0])
				if err != nil {
					return err
				}
				return s.SignalJob(s.ctx, id, signal, signal == "")
			})
		},
	}
	c.Flags().StringVar(&signal, "signal", "", "send the signal of this `name` instead")
	return c
}

// jobID returns the id of the job that is meant: by the name of one that runs, or of the last of that name, or by the beginning
// of an id.
func jobID(s *session, given string) (string, error) {
	list, err := s.Jobs(s.ctx)
	if err != nil {
		return "", err
	}
	var ids []string
	named := ""
	for _, job := range list { // the newest first
		ids = append(ids, job.Id)
		if given != "" && job.Name == given && (named == "" || job.State == pb.JobState_JOB_STATE_RUNNING) {
			named = job.Id
			if job.State == pb.JobState_JOB_STATE_RUNNING {
				break
			}
		}
	}
	if named != "" {
		return named, nil
	}
	return oneOf(given, ids)
}

// jobIDs returns the ids of the jobs, as completions.
func jobIDs(s *session) ([]string, error) {
	list, err := s.Jobs(s.ctx)
	var words []string
	for _, job := range list {
		words = append(words, job.Id+"\t"+job.Command)
	}
	return words, err
}

// detached starts a command that outlives the connection: as a job, or, with an agent that has no jobs, without a record of it.
func (a *app) detached(s *session, command client.Command) error {
	if !supportsStreaming(s) {
		return notStarted(s.causeOf(s.Start(s.ctx, command)))
	}
	reply, err := s.Detach(s.ctx, command)
	if errors.Is(err, errors.ErrUnsupported) {
		return notStarted(s.causeOf(s.Start(s.ctx, command)))
	}
	if err != nil {
		return notStarted(s.causeOf(err))
	}
	if a.json {
		return a.printJSON(reply)
	}
	_, err = fmt.Fprintln(a.stdout, reply.JobId)
	return err
}
