// Package human formats what comes from a guest for people who read it on a terminal.
package human

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/text"
)

// Printable returns text of a guest that is safe for a terminal: control characters but newline and tab, and bytes that are not
// UTF-8, become escapes.
func Printable(s string) string { return text.EscapeFunc(s, unprintable) }

// PrintableLine returns printable text that stays in its line and column.
func PrintableLine(s string) string {
	return strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(Printable(s))
}

func unprintable(r rune) bool { return r != '\n' && r != '\t' && r != ' ' && !unicode.IsPrint(r) }

// Colours reports whether what is written to w may have colours: w is a terminal that knows them, and NO_COLOR is not set.
func Colours(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(file.Fd()))
}

// Size formats a number of bytes for people.
func Size(n uint64) string {
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

// Time formats a time of the guest in local time; a dash where there is none.
func Time(t *timestamppb.Timestamp) string {
	if t == nil || !t.IsValid() {
		return "-"
	}
	return t.AsTime().Local().Format("2006-01-02 15:04:05")
}

// Plural formats a number with its noun.
func Plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	if strings.HasSuffix(one, "y") {
		return fmt.Sprintf("%d %sies", n, one[:len(one)-1])
	}
	return fmt.Sprintf("%d %ss", n, one)
}
