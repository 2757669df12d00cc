package main

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// sortKeys are what lists of processes can be sorted by.
func sortKeys() []string { return []string{"pid", "name", "started", "cpu", "memory"} }

func (a *app) psCommand() *cobra.Command {
	request := &pb.ListProcessesRequest{}
	c := &cobra.Command{
		Use:   "ps [NAME]",
		Short: "list the processes of the guest",
		Long: `ps lists the processes of the guest, or those whose name has NAME in it, in any case. CPU is the present use in percent of one
processor: over the time since the last list where that was at most 10 seconds ago, else over 0.2 seconds. MEMORY is what is
resident. Arguments are quoted as for a shell, and what is not printable is escaped; long command lines are cut.

STATE is the kernel's letter: R running, S sleeping, D waiting for a device, T stopped, Z zombie, I idle.

With --json: an array of ProcessInfo. A pid and its start_ticks name a process until the guest is booted again: see kill.`,
		Example: `  quantix-kvm-ctl ps --sort memory --max 10
  quantix-kvm-ctl ps nginx
  quantix-kvm-ctl ps --json --sort started --reverse --max 1 | jq -r '.[].command_line'`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.complete(false, processNames),
		RunE: func(c *cobra.Command, args []string) error {
			request.Filter = strings.Join(args, "")
			return a.with(c.Context(), requestTimeout, func(s *session) error { return a.ps(s, request) })
		},
	}
	listFlags(c, request, "pid")
	c.Flags().BoolVar(&request.IncludeThreads, "threads", false, "list the threads of each process as well")
	c.Flags().Uint32Var(&request.MaxEntries, "max", 0, "list at most `n`, the first in order; 0: all")
	return c
}

// listFlags adds the flags that ps and top have in common.
func listFlags(c *cobra.Command, request *pb.ListProcessesRequest, sort string) {
	f := c.Flags()
	f.StringVar(&request.Sort, "sort", sort,
		"sort by `key`: pid, name, started, cpu or memory, these two with the largest first")
	f.BoolVar(&request.Reverse, "reverse", false, "sort the other way round")
	f.BoolVar(&request.OmitArguments, "no-args", false, "leave out the arguments of commands, which may hold secrets")
	complete := cobra.FixedCompletions(sortKeys(), cobra.ShellCompDirectiveNoFileComp)
	if err := c.RegisterFlagCompletionFunc("sort", complete); err != nil {
		panic(err) // the flag is the one above
	}
}

func (a *app) ps(s *session, request *pb.ListProcessesRequest) error {
	list, err := s.Processes(s.ctx, request)
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
	_, width := a.screen()
	return printProcesses(a.stdout, list, psColumns(), width)
}

// screen returns the size of the terminal that stdout is; 0 if it is none.
func (a *app) screen() (rows, columns int) {
	if !isScreen(a.stdout.file) {
		return 0, 0
	}
	r, c := a.windowSize()
	return int(r), int(c)
}

// processColumn is a column of a table of processes.
type processColumn struct {
	name string
	of   func(*pb.ProcessInfo) string
}

// psColumns are the columns of ps.
func psColumns() []processColumn {
	return []processColumn{
		{"PID", func(p *pb.ProcessInfo) string { return strconv.FormatUint(uint64(p.Pid), 10) }},
		{"PPID", func(p *pb.ProcessInfo) string { return strconv.FormatUint(uint64(p.Ppid), 10) }},
		{"USER", (*pb.ProcessInfo).GetUser},
		{"STATE", processState},
		{"CPU", func(p *pb.ProcessInfo) string { return fmt.Sprintf("%.1f%%", p.CpuPercent) }},
		{"MEMORY", func(p *pb.ProcessInfo) string { return size(p.MemoryBytes) }},
		{"THREADS", func(p *pb.ProcessInfo) string { return strconv.FormatUint(uint64(p.ThreadCount), 10) }},
		{"STARTED", func(p *pb.ProcessInfo) string { return at(p.StartedAt) }},
		{"COMMAND", processCommand},
	}
}

// printProcesses prints a table of processes, in lines of at most width characters; 0: of any length.
func printProcesses(w io.Writer, list []*pb.ProcessInfo, columns []processColumn, width int) error {
	rows := make([][]string, 1+len(list))
	for _, c := range columns {
		rows[0] = append(rows[0], c.name)
		for i, p := range list {
			rows[i+1] = append(rows[i+1], c.of(p))
		}
	}
	var all bytes.Buffer
	if err := table(&all, rows); err != nil {
		return err
	}
	for line := range strings.Lines(all.String()) {
		if _, err := io.WriteString(w, cutLine(line, width)); err != nil {
			return err
		}
	}
	return nil
}

// cutLine returns a line, or what of it has at most width characters; 0: all of it.
func cutLine(line string, width int) string {
	if runes := []rune(strings.TrimSuffix(line, "\n")); width > 0 && len(runes) > width {
		return string(runes[:width]) + "\n"
	}
	return line
}

// processState returns the state of a process: the kernel's letter, or, from an agent that does not send that, a word.
func processState(p *pb.ProcessInfo) string {
	if p.StateCode != "" {
		return p.StateCode
	}
	return p.State
}

// processCommand returns the command line of a process. What has none is a kernel thread, a zombie or a thread: its name stands
// in brackets.
func processCommand(p *pb.ProcessInfo) string {
	if p.CommandLine == "" {
		return "[" + p.Name + "]"
	}
	return p.CommandLine
}

// processNames returns the names of the processes of the guest, each once, as completions.
func processNames(s *session) (words []string, err error) {
	list, err := s.Processes(s.ctx, &pb.ListProcessesRequest{Sort: "name", OmitArguments: true})
	for i, p := range list {
		if i == 0 || p.Name != list[i-1].Name {
			words = append(words, p.Name)
		}
	}
	return words, err
}

// processIDs returns the pids of the processes that have a program, as completions.
func processIDs(s *session) (words []string, err error) {
	list, err := s.Processes(s.ctx, &pb.ListProcessesRequest{})
	for _, p := range list {
		if p.CommandLine != "" {
			words = append(words, fmt.Sprintf("%d\t%s", p.Pid, text.Truncate(p.CommandLine, 80)))
		}
	}
	return words, err
}
