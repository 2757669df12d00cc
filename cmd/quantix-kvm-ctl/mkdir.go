package main

import "github.com/spf13/cobra"

func (a *app) mkdirCommand() *cobra.Command {
	var parents bool
	var mode string
	c := &cobra.Command{
		Use:   "mkdir [-p] PATH...",
		Short: "make directories in the guest",
		Long: `mkdir makes directories in the guest. One that exists already is left as it is, its mode too, and is no error.

With --json: {"directories": [PATH...]}, those that are there now.`,
		Example: `  quantix-kvm-ctl mkdir -p /srv/www/site
  quantix-kvm-ctl mkdir --mode 0700 /root/.ssh`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completePath,
		RunE: func(c *cobra.Command, paths []string) error {
			bits, err := parseMode(mode)
			if err != nil {
				return err
			}
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				return a.each(s, paths, "directories", func(path string) (bool, error) {
					err := s.Mkdir(s.ctx, path, bits, parents)
					return err == nil, err
				})
			})
		},
	}
	c.Flags().BoolVarP(&parents, "parents", "p", false, "make missing directories on the way as well")
	c.Flags().StringVarP(&mode, "mode", "m", "", "permission `bits` in octal (default 0755)")
	return c
}
