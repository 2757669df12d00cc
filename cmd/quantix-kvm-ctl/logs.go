package main

import (
	"errors"
	"io/fs"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	var lines int
	c := &cobra.Command{
		Use:   "logs [-f] [-n LINES] [UNIT]",
		Short: "show the log of the guest, or of one of its units",
		Long: `logs shows the end of the guest's journal, or with UNIT of what that unit wrote. A guest without a journal, or whose
journal has nothing of it, shows the end of /var/log/messages or /var/log/syslog, where UNIT is a text that lines must hold.

It runs journalctl, or tail, in the guest, as exec does.`,
		Example: `  quantix-kvm-ctl logs -n 20 nginx
  quantix-kvm-ctl logs -f`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.complete(false, unitNames),
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.hasNoJSON("logs"); err != nil {
				return err
			}
			if lines < 0 {
				return usage("--lines %d: it is no whole number from 0 on", lines)
			}
			unit := ""
			if len(args) == 1 {
				unit = args[0]
			}
			return a.withCancelWait(c.Context(), func(s *session) error { return a.logs(s, unit, lines, follow) })
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is logged from now on")
	c.Flags().IntVarP(&lines, "lines", "n", 100, "show the last `n` lines")
	return c
}

func (a *app) logs(s *session, unit string, lines int, follow bool) error {
	argv := []string{"journalctl", "--no-pager", "--quiet", "--lines", strconv.Itoa(lines)}
	if unit != "" {
		argv = append(argv, "--unit", unit)
	}
	if follow {
		argv = append(argv, "--follow")
	}
	err := a.execLive(s, client.Command{Argv: argv, Timeout: a.timeout}, false, false)
	none := client.IsProgram(err) && errors.Is(err, fs.ErrNotExist)
	if empty := err == nil && !follow && lines > 0 && !a.stdout.wrote.Load(); !none && !empty {
		return err
	}
	const line = `for f in /var/log/messages /var/log/syslog; do [ -r "$f" ] || continue; ` +
		`if [ -n "$1" ]; then if [ -n "$3" ]; then tail -n "$2" -F "$f" | grep -F -e "$1"; else grep -F -e "$1" "$f" | tail -n "$2"; fi; ` +
		`else tail -n "$2" $3 "$f"; fi; exit; done; ` +
		`[ -n "$4" ] || { echo "there is neither a journal nor a /var/log/messages or syslog" >&2; exit 1; }`
	more, journal := "", "empty"
	if follow {
		more = "-F"
	}
	if none {
		journal = ""
	}
	argv = []string{"sh", "-c", line, "sh", unit, strconv.Itoa(lines), more, journal}
	err = a.execLive(s, client.Command{Argv: argv, Timeout: a.timeout}, false, false)
	if err == nil && lines > 0 && !a.stdout.wrote.Load() {
		if unit != "" {
			unit = " of " + unit
		}
		a.note("logs: nothing%s is logged", unit)
	}
	return err
}

// unitNames returns the units of the guest, as completions.
func unitNames(s *session) (words []string, err error) {
	list, err := s.Services(s.ctx, &pb.ListServicesRequest{})
	for _, unit := range list {
		words = append(words, unit.Name+"\t"+unit.Description)
	}
	return words, err
}
