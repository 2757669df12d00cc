package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) networkCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "network",
		Short: "show, or configure, the network of the guest",
		Long: `network shows how the network of the guest is at present, as its kernel and its resolver see it: the interfaces with their
addresses, the routes of all tables but the kernel's own for local addresses, and who is asked for names. An address that is
still checked for duplicates, or is one, is marked with a question mark.

With --json: NetworkResponse.`,
		Example: `  quantix-kvm-ctl network
  quantix-kvm-ctl network --json | jq -r '.interfaces[] | select(.up) | .addresses[]'`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error { return a.with(c.Context(), requestTimeout, a.network) },
	}
	c.AddCommand(a.networkApplyCommand())
	return c
}

func (a *app) network(s *session) error {
	n, err := s.Network(s.ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(n)
	}
	for _, part := range [][][]string{interfaceRows(n.Interfaces), routeRows(n.Routes), dnsRows(n.Dns)} {
		if err := table(a.stdout, part); err != nil {
			return err
		}
	}
	if n.RoutesDropped > 0 {
		a.note("%s more than the reply holds", plural(int(n.RoutesDropped), "route"))
	}
	return nil
}

func interfaceRows(interfaces []*pb.NetInterface) (rows [][]string) {
	for _, i := range interfaces {
		state := "off"
		switch {
		case i.Up:
			state = "up"
		case i.Enabled:
			state = "no carrier"
		}
		kind := i.Kind
		if i.Master != "" {
			kind += " of " + i.Master
		}
		var addresses []string
		for _, addr := range i.Addresses {
			if slices.Contains(i.Tentative, addr) {
				addr += "?"
			}
			addresses = append(addresses, addr)
		}
		rows = append(rows, []string{
			i.Name, state, dash(kind), dash(i.Mac), strconv.Itoa(int(i.Mtu)), dash(strings.Join(addresses, " ")),
		})
	}
	return headed(rows, "INTERFACE", "STATE", "KIND", "MAC", "MTU", "ADDRESSES")
}

// mainTable is the number of the table of routes that is meant where none is named.
const mainTable = 254

func routeRows(routes []*pb.NetRoute) (rows [][]string) {
	for _, r := range routes {
		destination, via := r.Destination, r.Gateway
		if strings.HasSuffix(destination, "/0") {
			destination = "default"
			if strings.Contains(r.Destination, ":") {
				destination = "default (IPv6)"
			}
		}
		if r.Type != "unicast" {
			via = r.Type
		}
		table := "-"
		if r.Table != mainTable {
			table = fmt.Sprint(r.Table)
		}
		rows = append(rows, []string{
			destination, dash(via), dash(r.Interface), dash(r.Source), fmt.Sprint(r.Metric), r.Protocol, table,
		})
	}
	return headed(rows, "ROUTE", "GATEWAY", "INTERFACE", "SOURCE", "METRIC", "PROTOCOL", "TABLE")
}

func dnsRows(d *pb.NetDns) (rows [][]string) {
	if d == nil {
		return nil
	}
	rows = append(rows, []string{"all", dash(strings.Join(d.Servers, " ")), dash(strings.Join(d.Search, " ")), d.Manager})
	for _, l := range d.Links {
		rows = append(rows, []string{l.Interface, dash(strings.Join(l.Servers, " ")), dash(strings.Join(l.Search, " ")), ""})
	}
	return headed(rows, "NAMES", "SERVERS", "SEARCH", "MANAGER")
}
