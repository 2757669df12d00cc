package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// maxNetplan is how many bytes of YAML the agent takes.
const maxNetplan = 1 << 20

func (a *app) networkApplyCommand() *cobra.Command {
	request := &pb.ConfigureNetworkRequest{Verify: &pb.NetplanVerify{}}
	var confirm time.Duration
	var later bool
	c := &cobra.Command{
		Use:   "apply FILE",
		Short: "configure the network of the guest by a file of netplan",
		Long: `apply gives the guest a file of netplan (- is standard input), which takes the place of the one that a host gave it before: the
guest has it as /etc/netplan/99-limiquantix.yaml. It is checked together with all other files, applied, and looked at: the
interfaces have the addresses that are asked for, and where the default gateway answered before, one answers. If that is not so
the guest goes back to the network that it had, also where it loses its power meanwhile.

With --confirm the change is taken back unless "confirm ID" comes in time, which is a look at the guest from outside.

With --json: ConfigureNetworkResponse.

EXIT STATUS
  0  the network is as the file says; with --confirm, unless it is taken back
  1  it does not work, or the file is wrong: the network is as it was
  4  refused: a rule, another change under way, or a guest whose network the agent does not configure`,
		Example: `  quantix-kvm-ctl network apply ./web.yaml --confirm 60s
  quantix-kvm-ctl network apply ./web.yaml --tcp 192.0.2.10:443`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if confirm < 0 || confirm > 0 && confirm < time.Second {
				return usage("--confirm is at least 1s")
			}
			text, err := readNetplan(a.stdin, args[0])
			if err != nil {
				return err
			}
			request.NetplanConfig, request.ApplyNow, request.ConfirmSeconds = text, !later, client.Seconds(confirm)
			return a.with(c.Context(), networkTimeout, func(s *session) error { return a.configureNetwork(s, request) })
		},
	}
	c.Flags().DurationVar(&confirm, "confirm", 0, "take the change back unless it is confirmed within this `time`")
	c.Flags().BoolVar(&later, "later", false, "only check and write the file: it holds from the next boot, or apply, on")
	c.Flags().BoolVar(&request.Override, "override", false, "also where another file says something else of the same interfaces")
	c.Flags().BoolVar(&request.Verify.Gateway, "gateway", false, "a default gateway must answer, also where none did before")
	c.Flags().StringVar(&request.Verify.Tcp, "tcp", "", "the guest must get a connection to this `host:port`")
	c.Flags().StringVar(&request.Verify.Dns, "dns", "", "the guest must find an address of this `name`")
	return c
}

// networkTimeout is more than the agent takes: 20 s for the network, and 45 s to go back.
const networkTimeout = 2 * time.Minute

func readNetplan(stdin io.Reader, path string) (string, error) {
	from := stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer file.Close()
		from = file
	}
	text, err := io.ReadAll(io.LimitReader(from, maxNetplan+1))
	if err == nil && len(text) > maxNetplan {
		err = fmt.Errorf("%s: it has more than %d bytes", path, maxNetplan)
	}
	return string(text), err
}

func (a *app) configureNetwork(s *session, request *pb.ConfigureNetworkRequest) error {
	reply, err := client.Call[*pb.ConfigureNetworkResponse](s.ctx, s.Client, request)
	if err != nil {
		return err
	}
	if a.json {
		if err := a.printJSON(reply); err != nil {
			return err
		}
		if !reply.Success {
			return &failure{code: exitFailed} // the error is in the reply
		}
		return nil
	}
	if !reply.Success {
		return errors.New(cmp.Or(reply.Error, "the agent does not say why"))
	}
	for _, step := range reply.Steps {
		if !a.quiet {
			fmt.Fprintf(a.stderr, "%6.2fs %s %s: %s\n", step.At, printable(step.Step), printable(step.Object), printable(step.Seen))
		}
	}
	switch {
	case !reply.Changed:
		a.note("nothing changed")
	case reply.TransactionId != "":
		a.note("undone at %s, by the guest's clock, unless it is confirmed: transaction %s",
			reply.ConfirmUntil.AsTime().Local().Format(time.TimeOnly), printable(reply.TransactionId))
		fmt.Fprintln(a.stdout, printable(reply.TransactionId))
	default:
		a.note("changed")
	}
	return nil
}
