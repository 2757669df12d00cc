// Package manual makes manual pages of what the commands of a program say in their help, one for each command.
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
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Command is a hidden command of a program, which writes its pages into a directory. section is that of the manual; version
// stands at the foot of each page.
func Command(section int, version string) *cobra.Command {
	return &cobra.Command{
		Use: "manual DIR", Short: "write the manual pages", Hidden: true, Args: cobra.ExactArgs(1),
		Long:    "manual writes a manual page for each command into a directory that exists. They say what --help says.",
		Example: "  man -l ./DIR/*",
		RunE:    func(c *cobra.Command, args []string) error { return Write(c.Root(), section, version, args[0]) },
	}
}

// Write writes the page of a command, and those of all below it that are shown, into a directory.
func Write(c *cobra.Command, section int, version, dir string) error {
	path := filepath.Join(dir, fmt.Sprintf("%s.%d", name(c), section))
	if err := os.WriteFile(path, Page(c, section, version), 0o644); err != nil {
		return err
	}
	for _, sub := range shown(c) {
		if err := Write(sub, section, version, dir); err != nil {
			return err
		}
	}
	return nil
}

// Page is the page of a command, for man(7).
func Page(c *cobra.Command, section int, version string) []byte {
	var p page
	fmt.Fprintf(&p, ".TH %q %d \"\" %q\n.nh\n.ad l\n", strings.ToUpper(name(c)), section, c.Root().Name()+" "+version)
	p.heading("NAME")
	fmt.Fprintf(&p, "%s \\- %s\n", escape(name(c)), escape(c.Short))
	p.heading("SYNOPSIS")
	for _, use := range uses(c) {
		fmt.Fprintf(&p, "\\fB%s\\fR\n.br\n", escape(use))
	}
	p.heading("DESCRIPTION")
	p.text(description(c))
	if list := shown(c); len(list) > 0 {
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
	p.related(c, section)
	return p.Bytes()
}

// name is that of a page: program-command.
func name(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

func shown(c *cobra.Command) (list []*cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" && sub.Name() != "completion" {
			list = append(list, sub)
		}
	}
	return list
}

func uses(c *cobra.Command) []string {
	var list []string
	if c.Runnable() {
		list = append(list, c.UseLine())
	}
	if len(shown(c)) > 0 {
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
	headingLine = regexp.MustCompile(`^[A-Z][A-Z ]+$`)
	termLine    = regexp.MustCompile(`^(\S+(?: \S+)*) {2,}(\S.*)$`)
)

// text writes a help text.
func (p *page) text(text string) {
	term := -1 // how far the description of a term is indented, which the next line may go on with
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n ")
		words := strings.TrimLeft(line, " ")
		indent := len(line) - len(words)
		match := termLine.FindStringSubmatch(words)
		switch {
		case words == "":
			p.WriteString(".PP\n")
			term = -1
		case headingLine.MatchString(line):
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

// related names the pages above and below.
func (p *page) related(c *cobra.Command, section int) {
	var list []string
	if c.HasParent() {
		list = append(list, name(c.Parent()))
	}
	for _, sub := range shown(c) {
		list = append(list, name(sub))
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

// unindent takes the two spaces away that examples begin with.
func unindent(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}

var special = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `…`, `...`)

// escape keeps a text from being taken for requests.
func escape(text string) string {
	lines := strings.Split(special.Replace(text), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
