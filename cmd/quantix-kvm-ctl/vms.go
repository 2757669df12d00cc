package main

import (
	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
)

func (a *app) vmsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "vms",
		Short: "list the virtual machines of this host that have a socket of an agent",
		Long: `vms lists what --vm takes, with the socket that it stands for. Nothing is asked of the guests, since a socket serves one client
at a time.

With --json: an array of {"vm","socket"}.`,
		Example: "  quantix-kvm-ctl vms",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return a.vms("/") },
	}
}

func (a *app) vms(root string) error {
	type machine struct {
		VM     string `json:"vm"`
		Socket string `json:"socket"`
	}
	list, rows := []machine{}, [][]string{{"VM", "SOCKET"}}
	for _, id := range client.ListVMs(root) {
		socket, err := client.FindSocket(root, id)
		if err != nil {
			socket = err.Error() // several have the same id
		}
		list, rows = append(list, machine{id, socket}), append(rows, []string{id, socket})
	}
	if a.json {
		return a.printJSON(list)
	}
	return table(a.stdout, rows)
}
