package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
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
	if isTerminal(a.stdout) {
		return a.printPretty(v)
	}
	text, err := toJSON(v)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(append(text, '\n'))
	return err
}

// toJSON returns compact JSON. protojson adds blanks at random places on purpose; they are removed.
func toJSON(v any) (json.RawMessage, error) {
	m, ok := v.(proto.Message)
	if !ok {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		err := e.Encode(v)
		return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = json.Compact(&b, text)
	return b.Bytes(), err
}

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

// printable returns text of a guest that is safe for a terminal: control characters but newline and tab, and bytes that are not
// UTF-8, become escapes.
func printable(s string) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, unprintable) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 || unprintable(r) {
			quoted := strconv.Quote(s[:n])
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// printableLine returns printable text that stays in its line and column.
func printableLine(s string) string {
	return strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(printable(s))
}

func unprintable(r rune) bool { return r != '\n' && r != '\t' && r != ' ' && !unicode.IsPrint(r) }

// size formats a number of bytes for people.
func size(n uint64) string {
	if n < 1024 {
		return strconv.FormatUint(n, 10) + " B"
	}
	f, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if f /= 1024; f < 1023.95 {
			break
		}
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + " " + unit
}

// ago formats a number of seconds for people.
func ago(seconds uint64) string {
	d := time.Duration(min(seconds, 1<<33)) * time.Second
	if days := d / (24 * time.Hour); days > 0 {
		return fmt.Sprintf("%dd%v", days, (d % (24 * time.Hour)).Truncate(time.Minute))
	}
	return d.String()
}

// at formats a time of the guest in local time; a dash where there is none.
func at(t *timestamppb.Timestamp) string {
	if t == nil || !t.IsValid() {
		return "-"
	}
	return t.AsTime().Local().Format("2006-01-02 15:04:05")
}

// plural formats a number with its noun.
func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	if strings.HasSuffix(one, "y") {
		return fmt.Sprintf("%d %sies", n, one[:len(one)-1])
	}
	return fmt.Sprintf("%d %ss", n, one)
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
