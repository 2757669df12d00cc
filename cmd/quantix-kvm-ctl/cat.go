package main

import (
	"bytes"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
)

func (a *app) catCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cat PATH...",
		Short: "print files of the guest",
		Long: `cat prints files of the guest to stdout, one after the other, as they are. A file that grows while it is read is read to its
end; one that is replaced by another is an error.

With --json: one line for each file, {"path","size","mode","data"}, the content as base64.`,
		Example: `  quantix-kvm-ctl cat /etc/os-release
  quantix-kvm-ctl cat /var/log/syslog | tail`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completePath,
		RunE: func(c *cobra.Command, paths []string) error {
			return a.with(c.Context(), noTimeout, func(s *session) error {
				for _, path := range paths {
					if err := a.cat(s, path); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func (a *app) cat(s *session, path string) error {
	if !a.json {
		_, err := s.PullTo(s.ctx, path, a.stdout, client.PullOptions{})
		if lost := a.stdout.err(); lost != nil { // it is not the file that fails
			return lost
		}
		return err
	}
	var content bytes.Buffer
	got, err := s.PullTo(s.ctx, path, &content, client.PullOptions{})
	if err != nil {
		return err
	}
	return a.printJSON(struct {
		Path string `json:"path"`
		Size int64  `json:"size"`
		Mode string `json:"mode"` // octal
		Data []byte `json:"data"`
	}{path, got.Size, fmt.Sprintf("%04o", got.Mode&permissionBits), content.Bytes()})
}
