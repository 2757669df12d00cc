package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Set by the linker: -X main.version=… and so on.
var (
	version = "0.2.0-dev"
	commit  = "unknown"
	built   = "unknown"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "show the version of this program",
		Long: `version shows the version of quantix-kvm-ctl; that of an agent is shown by info and ping.

With --json: {"version","commit","built","go","platform"}.`,
		Example: "  quantix-kvm-ctl version",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if !a.json {
				_, err := fmt.Fprintf(a.stdout, "quantix-kvm-ctl %s\n", versionLine())
				return err
			}
			return a.printJSON(struct {
				Version  string `json:"version"`
				Commit   string `json:"commit"`
				Built    string `json:"built"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
			}{version, commitID(), built, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH})
		},
	}
}

func versionLine() string {
	return fmt.Sprintf("%s (commit %s, built %s, %s %s/%s)", version, commitID(), built, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// commitID falls back to what the Go tool recorded.
func commitID() string {
	if commit != "unknown" {
		return commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return commit
}
