// Package usagetext says in plain words what is wrong with a command line, in place of those that cobra and pflag have for it.
//
// Not here: mistakes that a command finds itself.
package usagetext

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// The words that the libraries have for mistakes of a command line.
var (
	tooFewWords   = lazyregexp.New(`^requires at least (\d+) arg\(s\), only received (\d+)$`)
	exactWords    = lazyregexp.New(`^accepts (\d+) arg\(s\), received (\d+)$`)
	tooManyWords  = lazyregexp.New(`^accepts at most (\d+) arg\(s\), received (\d+)$`)
	betweenWords  = lazyregexp.New(`^accepts between (\d+) and (\d+) arg\(s\), received (\d+)$`)
	noneWords     = lazyregexp.New(`^unknown command "(.*)" for ".*"$`)
	badValueWords = lazyregexp.New(`(?s)^invalid argument "(.*)" for "(?:-\w, )?(--[\w-]+)" flag: (.*)$`)
)

// Of says what is wrong with a command line in plain words, and how the command c is called. Any other error is returned as it
// is.
func Of(c *cobra.Command, err error) error {
	text := err.Error()
	if m := badValueWords().FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s %s: %s", m[2], m[1], plainCause(m[3]))
	}
	needs := ""
	if m := tooFewWords().FindStringSubmatch(text); m != nil {
		needs = fmt.Sprintf("needs at least %s, and got %s", arguments(m[1]), m[2])
	} else if m := exactWords().FindStringSubmatch(text); m != nil {
		needs = fmt.Sprintf("needs %s, and got %s", arguments(m[1]), m[2])
	} else if m := tooManyWords().FindStringSubmatch(text); m != nil {
		needs = fmt.Sprintf("takes at most %s, and got %s", arguments(m[1]), m[2])
	} else if m := betweenWords().FindStringSubmatch(text); m != nil {
		needs = fmt.Sprintf("takes %s to %s, and got %s", m[1], arguments(m[2]), m[3])
	}
	if m := noneWords().FindStringSubmatch(text); m != nil && !c.HasSubCommands() {
		needs = fmt.Sprintf("takes no argument, and got %q", m[1])
	}
	if needs == "" {
		return err
	}
	return fmt.Errorf("%s %s: %s", c.Name(), needs, strings.TrimSuffix(c.UseLine(), " [flags]"))
}

func arguments(n string) string {
	if n == "1" {
		return "1 argument"
	}
	return n + " arguments"
}

// plainCause says what is wrong with the value of a flag.
func plainCause(cause string) string {
	switch {
	case strings.HasPrefix(cause, "time: "):
		return "it is no time such as 90s, 5m or 1h30m"
	case strings.HasPrefix(cause, "strconv.ParseBool"):
		return "it is neither true nor false"
	case strings.HasPrefix(cause, "strconv.") && strings.HasSuffix(cause, "value out of range"):
		return "the number is too large"
	case strings.HasPrefix(cause, "strconv.ParseUint"):
		return "it is no whole number from 0 on"
	case strings.HasPrefix(cause, "strconv.ParseInt"):
		return "it is no whole number"
	case strings.HasPrefix(cause, "strconv."):
		return "it is no number"
	}
	return cause
}
