package main

import (
	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// startWatcher would watch the new version of an update.
func startWatcher(*pb.UpdateTrial, string) error {
	return fault.Unsupported("a process that becomes another program")
}

func watchCommand() *cobra.Command { return &cobra.Command{Use: "update-watch", Hidden: true} }
