package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/human"
	"github.com/quantix-kvm/guest-agent/cmd/internal/scriptreport"
)

// printPretty prints a value as JSON with two spaces of indentation.
func (a *app) printPretty(v any) error {
	text, err := toJSON(v)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, text, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err = a.stdout.Write(b.Bytes())
	return err
}

// printJSON prints a value as JSON in one line, on a terminal in several.
func (a *app) printJSON(v any) error {
	if isScreen(a.stdout.file) {
		return a.printPretty(v)
	}
	text, err := toJSON(v)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(append(text, '\n'))
	return err
}

// hasNoJSON refuses --json for a command whose output has no such form: stdout would hold something else.
func (a *app) hasNoJSON(command string) error {
	if a.json {
		return usage("%s has no output as JSON", command)
	}
	return nil
}

// toJSON returns compact JSON.
func toJSON(v any) (json.RawMessage, error) { return scriptreport.JSON(v) }

// listJSON returns the messages as a JSON array.
func listJSON[M proto.Message](list []M) ([]json.RawMessage, error) {
	all := make([]json.RawMessage, 0, len(list))
	for _, m := range list {
		text, err := toJSON(m)
		if err != nil {
			return nil, err
		}
		all = append(all, text)
	}
	return all, nil
}

// table prints rows in columns.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		for i := range row {
			row[i] = printableLine(row[i])
		}
		fmt.Fprintln(t, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	return t.Flush()
}

// ago formats a number of seconds for people.
func ago(seconds uint64) string {
	d := time.Duration(min(seconds, 1<<33)) * time.Second
	if days := d / (24 * time.Hour); days > 0 {
		return fmt.Sprintf("%dd%v", days, (d % (24 * time.Hour)).Truncate(time.Minute))
	}
	return d.String()
}

// Text for people, by short names.
var (
	printable, printableLine = human.Printable, human.PrintableLine
	size, plural, at         = human.Size, human.Plural, human.Time
)

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// isScreen reports whether an output is a terminal that understands escape sequences.
func isScreen(f *os.File) bool { return isTerminal(f) && understandsEscapes(f) }
