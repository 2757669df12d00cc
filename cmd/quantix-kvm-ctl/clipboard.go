package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/builtins/clipboard/local"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// clipboardTypes are the forms of content, as they are called on the command line.
var clipboardTypes = []string{"text", "html", "png", "files"}

func (a *app) clipboardCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "clipboard",
		Short: "read, set or watch the clipboard of the guest's desktop",
		Long: `clipboard works on the clipboard of the desktop in front of the guest: X11, or Wayland where the compositor lets programs at it
(ext-data-control-v1 or wlr-data-control-v1). Without a desktop, or while its screen is locked, it fails and says so.

TYPES
  text   UTF-8
  html   UTF-8; the guest is given plain text beside it
  png    an image; a BMP is made one
  files  a list of URIs, a line each`,
		Example: `  quantix-kvm-ctl clipboard get
  quantix-kvm-ctl clipboard set 'some text'
  quantix-kvm-ctl clipboard watch --sync`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.clipboardGetCommand(), a.clipboardSetCommand(), a.clipboardWatchCommand())
	return c
}

// clipboardFlags adds the flags that get and set have in common.
func clipboardFlags(c *cobra.Command, kind *string, primary *bool) {
	c.Flags().StringVar(kind, "type", "text", "the content is of this `type`: text, html, png or files")
	c.Flags().BoolVar(primary, "primary", false, "what is selected, and pasted by the middle mouse button, instead")
	if err := c.RegisterFlagCompletionFunc("type", cobra.FixedCompletions(clipboardTypes, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is the one above
	}
}

// clipboardType returns the type of the contract that a word names.
func clipboardType(word string) (pb.ClipboardType, error) {
	switch word {
	case "text":
		return pb.ClipboardType_CLIPBOARD_TYPE_TEXT, nil
	case "html":
		return pb.ClipboardType_CLIPBOARD_TYPE_HTML, nil
	case "png":
		return pb.ClipboardType_CLIPBOARD_TYPE_IMAGE, nil
	case "files":
		return pb.ClipboardType_CLIPBOARD_TYPE_FILES, nil
	}
	return 0, usage("--type is %s", strings.Join(clipboardTypes, ", "))
}

// clipboardWord is the inverse of clipboardType.
func clipboardWord(t pb.ClipboardType) string {
	at := slices.IndexFunc(clipboardTypes, func(word string) bool {
		named, err := clipboardType(word)
		return err == nil && named == t
	})
	if at < 0 {
		return fmt.Sprint(int(t))
	}
	return clipboardTypes[at]
}

func (a *app) clipboardGetCommand() *cobra.Command {
	var kind string
	request := &pb.ClipboardGetRequest{Exact: true}
	c := &cobra.Command{
		Use:   "get",
		Short: "print what is in the clipboard of the guest",
		Long: `get prints the content of the clipboard to stdout as it is, without a line end of its own.

With --json: ClipboardGetResponse, the content as base64.`,
		Example: `  quantix-kvm-ctl clipboard get
  quantix-kvm-ctl clipboard get --type png > shot.png`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if request.PreferredType, err = clipboardType(kind); err != nil {
				return err
			}
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				got, err := s.Clipboard(s.ctx, request)
				switch {
				case err != nil:
					return err
				case a.json:
					return a.printJSON(got)
				}
				_, err = a.stdout.Write(got.Data)
				return err
			})
		},
	}
	clipboardFlags(c, &kind, &request.Primary)
	return c
}

func (a *app) clipboardSetCommand() *cobra.Command {
	var kind, plain string
	request := &pb.ClipboardUpdateRequest{}
	c := &cobra.Command{
		Use:   "set [CONTENT]",
		Short: "set the clipboard of the guest",
		Long: `set sets the clipboard of the guest to CONTENT, or without it to what comes on stdin. It stays until somebody else sets it,
or the session ends.`,
		Example: `  quantix-kvm-ctl clipboard set 'some text'
  quantix-kvm-ctl clipboard set --type png < shot.png
  quantix-kvm-ctl clipboard set --type html '<b>loud</b>' --text loud`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) (err error) {
			if request.Type, err = clipboardType(kind); err != nil {
				return err
			}
			if c.Flags().Changed("text") {
				if kind != "html" {
					return usage("--text is for --type html")
				}
				request.Text = &plain
			}
			if len(args) > 0 {
				request.Data = []byte(args[0])
			} else if request.Data, err = io.ReadAll(io.LimitReader(a.stdin, local.MaxContent+1)); err != nil {
				return err
			}
			if len(request.Data) > local.MaxContent {
				return fault.Wrapf(fault.ErrTooLarge, "the content is larger than %d bytes", local.MaxContent)
			}
			return a.with(c.Context(), requestTimeout, func(s *session) error { return s.SetClipboard(s.ctx, request) })
		},
	}
	clipboardFlags(c, &kind, &request.Primary)
	c.Flags().StringVar(&plain, "text", "", "with --type html: the `text` that is pasted as plain text; else the HTML without its tags")
	return c
}

func (a *app) clipboardWatchCommand() *cobra.Command {
	var sync bool
	c := &cobra.Command{
		Use:   "watch",
		Short: "show changes of the guest's clipboard, and join it with this machine's",
		Long: `watch prints a line for each change of the clipboard that is made in the guest, until it is interrupted: its types, its size,
and the beginning of a text. Changes by set are not shown.

With --sync the clipboard of the desktop that the command runs in (WAYLAND_DISPLAY, DISPLAY) and that of the guest become one, in
both directions, for text, HTML and images. Files are not: their paths mean nothing on the other side.

With --json: a line with a ClipboardChangedEvent for each change.`,
		Example: `  quantix-kvm-ctl clipboard watch
  quantix-kvm-ctl --vm desk clipboard watch --sync`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), noTimeout, func(s *session) error { return a.watchClipboard(s, sync) })
		},
	}
	c.Flags().BoolVar(&sync, "sync", false, "join the clipboard of the guest with that of this desktop")
	return c
}

// printClipboardChange prints a line about a change.
func (a *app) printClipboardChange(e *pb.ClipboardChangedEvent) error {
	if a.json {
		line, err := toJSON(e)
		if err != nil {
			return err
		}
		_, err = a.stdout.Write(append(line, '\n'))
		return err
	}
	var words []string
	for _, t := range e.Offered {
		words = append(words, clipboardWord(t))
	}
	line := strings.Join(words, ",")
	switch {
	case e.Reason != "":
		line += "  " + printable(e.Reason)
	case e.Type == pb.ClipboardType_CLIPBOARD_TYPE_TEXT:
		first, _, _ := strings.Cut(string(e.Data), "\n")
		line += fmt.Sprintf("  %s  %s", size(uint64(len(e.Data))), printable(text.Truncate(first, 80)))
	default:
		line += "  " + size(uint64(len(e.Data)))
	}
	_, err := fmt.Fprintln(a.stdout, line)
	return err
}
