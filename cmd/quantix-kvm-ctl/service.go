package main

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// serviceActions are the sub-commands that change a service.
var serviceActions = []struct {
	name, short, long string
	action            pb.ServiceAction
}{
	{"start", "start a service", "start starts a service and waits until it runs. One that runs already is left alone.", pb.ServiceAction_SERVICE_ACTION_START},
	{"stop", "stop a service", "stop stops a service and waits until it has ended.", pb.ServiceAction_SERVICE_ACTION_STOP},
	{"restart", "stop and start a service", "restart stops a service and starts it, or starts one that does not run.", pb.ServiceAction_SERVICE_ACTION_RESTART},
	{"reload", "have a service read its configuration again", "reload has a service that runs read its configuration again.", pb.ServiceAction_SERVICE_ACTION_RELOAD},
	{"enable", "have a service start with the guest", "enable has a service start with the guest, from its next boot on.", pb.ServiceAction_SERVICE_ACTION_ENABLE},
	{"disable", "no longer have a service start with the guest", "disable takes back what enable did. A service that runs goes on.", pb.ServiceAction_SERVICE_ACTION_DISABLE},
	{"mask", "keep a service from being started at all", "mask keeps a service from being started by anything. One that runs goes on.", pb.ServiceAction_SERVICE_ACTION_MASK},
	{"unmask", "take back what mask did", "unmask takes back what mask did.", pb.ServiceAction_SERVICE_ACTION_UNMASK},
}

const serviceHelp = `

NAME is that of a service, or of another unit with its type, such as backup.timer.

With --json: ServiceControlResponse, whose changed says whether there was anything to do.

EXIT STATUS
  0  done
  1  there is no such service, or it failed: the error has its last words
  4  refused, or not supported`

func (a *app) serviceCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "service",
		Short: "list, start and stop the services of the guest",
		Long: `service lists the services of the guest, starts and stops them, and says which ones start with it: with systemd or with OpenRC.
When the agent's own service is stopped or restarted, the answer comes first.`,
		Example: `  quantix-kvm-ctl service list --running
  quantix-kvm-ctl service status nginx
  quantix-kvm-ctl service restart nginx`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("service needs list, status, start, stop, restart, reload, enable, disable, mask or unmask")
		},
	}
	c.AddCommand(a.serviceListCommand(), a.serviceStatusCommand())
	for _, s := range serviceActions {
		c.AddCommand(&cobra.Command{
			Use: s.name + " NAME", Short: s.short, Long: s.long + serviceHelp, Example: "  quantix-kvm-ctl service " + s.name + " nginx",
			Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(false, serviceNames),
			RunE: func(c *cobra.Command, args []string) error {
				return a.with(c.Context(), requestTimeout, func(on *session) error { return a.service(on, args[0], s.action) })
			},
		})
	}
	return c
}

func (a *app) serviceListCommand() *cobra.Command {
	request := &pb.ListServicesRequest{}
	c := &cobra.Command{
		Use:   "list [NAME]",
		Short: "list services",
		Long: `list lists the services of the guest, or those whose name has NAME in it, in any case. STATE is how a service that is active
is so, such as running or exited, or else inactive, failed and so on. STARTS says whether it starts with the guest: auto,
disabled, or manual for one that others start; masked is one that nothing starts.

With --json: an array of ServiceInfo.`,
		Example: `  quantix-kvm-ctl service list --running
  quantix-kvm-ctl service list --json | jq -r '.[] | select(.state == "failed").name'`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.complete(false, serviceNames),
		RunE: func(c *cobra.Command, args []string) error {
			request.Filter = strings.Join(args, "")
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				list, err := s.Services(s.ctx, request)
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
				return a.printServices(list)
			})
		},
	}
	c.Flags().BoolVar(&request.RunningOnly, "running", false, "list only those that have a process running")
	return c
}

func (a *app) printServices(list []*pb.ServiceInfo) error {
	rows := [][]string{{"NAME", "STATE", "STARTS", "PID", "MEMORY", "DESCRIPTION"}}
	for _, s := range list {
		pid, memory := "-", "-"
		if s.Pid > 0 {
			pid = strconv.FormatUint(uint64(s.Pid), 10)
		}
		if s.MemoryBytes > 0 {
			memory = size(s.MemoryBytes)
		}
		rows = append(rows, []string{s.Name, dash(s.State), dash(s.StartType), pid, memory, s.Description})
	}
	return table(a.stdout, rows)
}

func (a *app) serviceStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status NAME",
		Short: "show the state of a service",
		Long:  "status shows the state of a service, whatever that is. The columns are those of list." + serviceHelp,
		Example: `  quantix-kvm-ctl service status nginx
  quantix-kvm-ctl service status --json backup.timer | jq -r .new_state`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(false, serviceNames),
		RunE: func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				reply, err := s.ControlService(s.ctx, args[0], pb.ServiceAction_SERVICE_ACTION_STATUS)
				switch {
				case err != nil:
					return err
				case a.json:
					return a.printJSON(reply)
				case reply.Service == nil: // of another agent
					return a.printServices([]*pb.ServiceInfo{{Name: args[0], State: reply.NewState}})
				}
				return a.printServices([]*pb.ServiceInfo{reply.Service})
			})
		},
	}
}

func (a *app) service(s *session, name string, action pb.ServiceAction) error {
	reply, err := s.ControlService(s.ctx, name, action)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(reply)
	}
	if reply.Service == nil {
		a.note("%s: %s", name, reply.NewState)
	} else if !reply.Changed {
		a.note("%s: nothing to do, it is %s, and starts: %s", name, reply.NewState, dash(reply.Service.StartType))
	}
	return nil
}

// serviceNames returns the names of the services of the guest, as completions.
func serviceNames(s *session) (words []string, err error) {
	list, err := s.Services(s.ctx, &pb.ListServicesRequest{})
	for _, service := range list {
		word := service.Name
		if service.Description != "" {
			word += "\t" + service.Description
		}
		words = append(words, word)
	}
	return words, err
}
