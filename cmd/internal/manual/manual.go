// Package manual makes manual pages from the help of a program's commands, one for each command.
//
//	quantix-kvm-ctl.1, quantix-kvm-ctl-push.1, …
//
// A line of capitals in a help text is a heading; what is below it may be indented, and a line with two words or more of space
// in it is a term and its description.
//
// Not here: what the help says.
package manual

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// Command returns a hidden command for a program, which writes the program's manual pages into a directory. section is
// that of the manual; version is in the footer of each page.
func Command(section int, version string) *cobra.Command {
	return &cobra.Command{
		Use: "manual DIR", Short: "write the manual pages", Hidden: true, Args: cobra.ExactArgs(1),
		Long:    "manual writes a manual page for each command into a directory that exists. They say what --help says.",
		Example: "  man -l ./DIR/*",
		RunE:    func(c *cobra.Command, args []string) error { return Write(c.Root(), section, version, args[0]) },
	}
}

// Write writes the page of a command, and those of all visible commands below it, into a directory.
func Write(c *cobra.Command, section int, version, dir string) error {
	path := filepath.Join(dir, fmt.Sprintf("%s.%d", pageName(c), section))
	if err := os.WriteFile(path, Page(c, section, version), 0o644); err != nil {
		return err
	}
	for _, sub := range visibleCommands(c) {
		if err := Write(sub, section, version, dir); err != nil {
			return err
		}
	}
	return nil
}

// Page returns the page of a command, in the language of man(7).
func Page(c *cobra.Command, section int, version string) []byte {
	var p page
	fmt.Fprintf(&p, ".TH %q %d \"\" %q\n.nh\n.ad l\n", strings.ToUpper(pageName(c)), section, c.Root().Name()+" "+version)
	p.heading("NAME")
	fmt.Fprintf(&p, "%s \\- %s\n", escape(pageName(c)), escape(c.Short))
	p.heading("SYNOPSIS")
	for _, use := range synopsis(c) {
		fmt.Fprintf(&p, "\\fB%s\\fR\n.br\n", escape(use))
	}
	p.heading("DESCRIPTION")
	p.helpText(description(c))
	if list := visibleCommands(c); len(list) > 0 {
		p.heading("COMMANDS")
		for _, sub := range list {
			fmt.Fprintf(&p, ".TP\n\\fB%s\\fR\n%s\n", escape(sub.Name()), escape(sub.Short))
		}
	}
	p.options("OPTIONS", c.LocalFlags())
	p.options("OPTIONS OF ALL COMMANDS", c.InheritedFlags())
	if c.Example != "" {
		p.heading("EXAMPLES")
		fmt.Fprintf(&p, ".nf\n%s\n.fi\n", escape(unindent(c.Example)))
	}
	p.seeAlso(c, section)
	return p.Bytes()
}

// pageName returns program-command.
func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

func visibleCommands(c *cobra.Command) (list []*cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" && sub.Name() != "completion" {
			list = append(list, sub)
		}
	}
	return list
}

func synopsis(c *cobra.Command) []string {
	var list []string
	if c.Runnable() {
		list = append(list, c.UseLine())
	}
	if len(visibleCommands(c)) > 0 {
		list = append(list, c.CommandPath()+" COMMAND …")
	}
	return list
}

func description(c *cobra.Command) string {
	if c.Long != "" {
		return c.Long
	}
	return c.Short
}

type page struct{ bytes.Buffer }

func (p *page) heading(text string) { fmt.Fprintf(p, ".SH %s\n", escape(text)) }

var (
	headingLine = lazyregexp.New(`^[A-Z][A-Z ]+$`)
	termLine    = lazyregexp.New(`^(\S+(?: \S+)*) {2,}(\S.*)$`)
)

// helpText writes a help text.
func (p *page) helpText(text string) {
	term := -1 // how far the description of a term is indented: the next line may continue it
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n ")
		words := strings.TrimLeft(line, " ")
		indent := len(line) - len(words)
		match := termLine().FindStringSubmatch(words)
		switch {
		case words == "":
			p.WriteString(".PP\n")
			term = -1
		case headingLine().MatchString(line):
			p.heading(line)
			term = -1
		case match != nil && (term < 0 || indent < term):
			fmt.Fprintf(p, ".TP\n\\fB%s\\fR\n%s\n", escape(match[1]), escape(match[2]))
			term = indent + strings.LastIndex(words, match[2])
		case term >= 0 && indent < term:
			fmt.Fprintf(p, ".PP\n%s\n", escape(words))
			term = -1
		default:
			fmt.Fprintln(p, escape(words))
		}
	}
}

func (p *page) options(heading string, flags *pflag.FlagSet) {
	first := true
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		if first {
			p.heading(heading)
			first = false
		}
		value, usage := pflag.UnquoteUsage(f)
		p.WriteString(".TP\n")
		if f.Shorthand != "" {
			fmt.Fprintf(p, "\\fB\\-%s\\fR, ", escape(f.Shorthand))
		}
		fmt.Fprintf(p, "\\fB\\-\\-%s\\fR", escape(f.Name))
		if value != "" {
			fmt.Fprintf(p, " \\fI%s\\fR", escape(value))
		}
		if zero := map[string]bool{"": true, "false": true, "0": true, "0s": true, "[]": true}; !zero[f.DefValue] && !strings.Contains(usage, "(default ") {
			usage += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		fmt.Fprintf(p, "\n%s\n", escape(usage))
	})
}

// seeAlso names the pages above and below.
func (p *page) seeAlso(c *cobra.Command, section int) {
	var list []string
	if c.HasParent() {
		list = append(list, pageName(c.Parent()))
	}
	for _, sub := range visibleCommands(c) {
		list = append(list, pageName(sub))
	}
	if len(list) == 0 {
		return
	}
	p.heading("SEE ALSO")
	for i, page := range list {
		comma := ","
		if i == len(list)-1 {
			comma = ""
		}
		fmt.Fprintf(p, ".BR %s (%d)%s\n", escape(page), section, comma)
	}
}

// unindent removes the two spaces that examples begin with.
func unindent(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}

var roffEscapes = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `…`, `...`)

// escape keeps text from being read as roff requests.
func escape(text string) string {
	lines := strings.Split(roffEscapes.Replace(text), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
