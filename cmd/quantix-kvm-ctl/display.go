package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) displayCommand() *cobra.Command {
	list := a.displayListCommand()
	c := &cobra.Command{
		Use:   "display",
		Short: "show and set the outputs of the guest's desktop",
		Long: `display shows and sets the outputs of the desktop that is in front in the guest: an X server, or a compositor of
Wayland (sway and others with wlr-output-management, GNOME, KDE Plasma). Without a subcommand it is display list.

GNOME and KDE Plasma take the sizes that an output lists. A change that the desktop does not make as a whole is not made.`,
		Example: `  quantix-kvm-ctl display
  quantix-kvm-ctl display set 1920x1080`,
		Args: cobra.NoArgs,
		RunE: list.RunE,
	}
	c.AddCommand(list, a.displaySetCommand(), a.displayLayoutCommand())
	return c
}

func (a *app) displayListCommand() *cobra.Command {
	var modes bool
	c := &cobra.Command{
		Use:   "list",
		Short: "list the outputs, with modes, scale and place",
		Long: `list shows the outputs of the desktop. * is the primary one. PLACE is that of the upper left corner; where the desktop
scales, it counts scaled pixels.

With --json: a ListDisplaysResponse.`,
		Example: `  quantix-kvm-ctl display list --modes`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				displays, err := s.Displays(s.ctx)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(displays)
				}
				return a.printOutputs(displays.Outputs, modes)
			})
		},
	}
	c.Flags().BoolVar(&modes, "modes", false, "show the modes of each output as well")
	return c
}

// printOutputs prints a table of outputs, with their modes below each where that is asked for.
func (a *app) printOutputs(outputs []*pb.DisplayOutput, modes bool) error {
	rows := [][]string{{"OUTPUT", "MODE", "SCALE", "PLACE", "MONITOR"}}
	for _, o := range outputs {
		name := o.Name
		if o.Primary {
			name += " *"
		}
		row := []string{name, "off", "", "", strings.Join(strings.Fields(o.Make+" "+o.Model), " ")}
		if o.Enabled {
			row[1] = displayMode(o.Width, o.Height, o.Refresh)
			row[2], row[3] = fmt.Sprintf("%g", o.Scale), fmt.Sprintf("%d,%d", o.X, o.Y)
			if o.Transform != "normal" && o.Transform != "" {
				row[1] += " " + o.Transform
			}
		}
		rows = append(rows, row)
		if !modes {
			continue
		}
		for _, m := range o.Modes {
			about := ""
			if m.Preferred {
				about = "preferred"
			}
			rows = append(rows, []string{"", displayMode(m.Width, m.Height, m.Refresh), "", "", about})
		}
	}
	return table(a.stdout, rows)
}

// displayMode is a mode as SIZE takes it.
func displayMode(width, height uint32, refresh float64) string {
	text := fmt.Sprintf("%dx%d", width, height)
	if refresh != 0 {
		text += "@" + strconv.FormatFloat(refresh, 'f', -1, 32)
	}
	return text
}

func (a *app) displaySetCommand() *cobra.Command {
	var output string
	var dpi uint32
	c := &cobra.Command{
		Use:   "set WIDTHxHEIGHT[@REFRESH][*SCALE]",
		Short: "set the size of an output",
		Long: `set sets the size of one output, of the primary one unless --output names another, and its refresh rate and scale where
they are given. A size that no mode has is made where the desktop allows that. What is beside the output makes room. Where the
desktop has no scale for each output, as X11, --dpi says how large its programs draw.

With --json: a DisplayLayoutResponse, with all outputs as they were read back.`,
		Example: `  quantix-kvm-ctl display set 1920x1080
  quantix-kvm-ctl display set '2560x1440@60*2' --output HEADLESS-1`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(false, displaySizes),
		RunE: func(c *cobra.Command, args []string) error {
			setting, err := parseDisplaySize(args[0])
			if err != nil {
				return err
			}
			on := true
			setting.Name, setting.Dpi, setting.Enabled = output, dpi, &on
			return a.setDisplays(c, setting)
		},
	}
	c.Flags().StringVar(&output, "output", "", "set the output of this `name` (default the primary one)")
	c.Flags().Uint32Var(&dpi, "dpi", 0, "set the scale for so many dots per inch, or these where there is no scale; 0: leave it")
	complete := func(c *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.fitting(c.Context(), word, displayNames), cobra.ShellCompDirectiveNoFileComp
	}
	if err := c.RegisterFlagCompletionFunc("output", complete); err != nil {
		panic(err) // the flag is the one above
	}
	return c
}

func (a *app) displayLayoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "layout OUTPUT=SETTING...",
		Short: "set several outputs at once",
		Long: `layout sets the outputs that are named, all or none. SETTING is off, or on, or a size as display set takes it, with
+X+Y behind it for a place, and ,primary for the primary output. Where none has a place they come side by side in the order
given.

With --json: a DisplayLayoutResponse, with all outputs as they were read back.`,
		Example: `  quantix-kvm-ctl display layout DP-1=2560x1440,primary DP-2=1920x1080
  quantix-kvm-ctl display layout DP-1=1920x1080+0+0 DP-2=1920x1080+0+1080 DP-3=off`,
		Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(c *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if strings.Contains(word, "=") {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			list := func(s *session) ([]string, error) {
				names, err := displayNames(s)
				for i, name := range names {
					names[i] = name + "="
				}
				return names, err
			}
			return a.fitting(c.Context(), word, list), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		},
		RunE: func(c *cobra.Command, args []string) error {
			var settings []*pb.DisplaySetting
			for _, arg := range args {
				setting, err := parseSetting(arg)
				if err != nil {
					return err
				}
				settings = append(settings, setting)
			}
			return a.setDisplays(c, settings...)
		},
	}
}

func (a *app) setDisplays(c *cobra.Command, settings ...*pb.DisplaySetting) error {
	return a.with(c.Context(), requestTimeout, func(s *session) error {
		reply, err := s.SetDisplays(s.ctx, settings...)
		switch {
		case err != nil:
			return err
		case a.json:
			return a.printJSON(reply)
		case a.quiet:
			return nil
		}
		return a.printOutputs(reply.Outputs, false)
	})
}

// sizeSyntax is WIDTHxHEIGHT, @REFRESH, *SCALE; and after it, for layout, +X+Y.
var sizeSyntax = regexp.MustCompile(
	`^(\d{1,9})x(\d{1,9})(?:@(\d+(?:\.\d+)?))?(?:\*(\d+(?:\.\d+)?))?(?:([+-]\d{1,9})([+-]\d{1,9}))?$`)

// parseDisplaySize reads a size, without a place.
func parseDisplaySize(text string) (*pb.DisplaySetting, error) {
	setting, ok := parsePlaced(text)
	if !ok || setting.X != nil {
		return nil, usage("%q is no size like 1920x1080, 1920x1080@60 or 2560x1440*2", text)
	}
	return setting, nil
}

func parsePlaced(text string) (*pb.DisplaySetting, bool) {
	parts := sizeSyntax.FindStringSubmatch(text)
	if parts == nil {
		return nil, false
	}
	number := func(text string) float64 {
		f, _ := strconv.ParseFloat(text, 64) // of the syntax above
		return f
	}
	setting := &pb.DisplaySetting{
		Width: uint32(number(parts[1])), Height: uint32(number(parts[2])), Refresh: number(parts[3]), Scale: number(parts[4]),
	}
	if parts[5] != "" {
		x, y := int32(number(parts[5])), int32(number(parts[6]))
		setting.X, setting.Y = &x, &y
	}
	return setting, true
}

// parseSetting reads OUTPUT=SETTING.
func parseSetting(arg string) (*pb.DisplaySetting, error) {
	name, text, ok := strings.Cut(arg, "=")
	if !ok || name == "" {
		return nil, usage("%q is not OUTPUT=SETTING, such as DP-1=1920x1080", arg)
	}
	text, primary := strings.CutSuffix(text, ",primary")
	on := text != "off"
	setting, ok := &pb.DisplaySetting{}, true
	if text != "on" && text != "off" {
		setting, ok = parsePlaced(text)
	}
	if !ok || !on && primary {
		return nil, usage("%q is not off, on, or a size like 1920x1080@60*2+0+0, with ,primary behind it for the primary output", arg)
	}
	setting.Name, setting.Enabled, setting.Primary = name, &on, primary
	return setting, nil
}

// displayNames returns the names of the outputs, as completions.
func displayNames(s *session) (words []string, err error) {
	displays, err := s.Displays(s.ctx)
	for _, o := range displays.GetOutputs() {
		words = append(words, o.Name)
	}
	return words, err
}

// displaySizes returns the sizes that the outputs list, as completions.
func displaySizes(s *session) (words []string, err error) {
	displays, err := s.Displays(s.ctx)
	for _, o := range displays.GetOutputs() {
		for _, m := range o.Modes {
			if size := displayMode(m.Width, m.Height, 0); !slices.Contains(words, size) {
				words = append(words, size)
			}
		}
	}
	return words, err
}
