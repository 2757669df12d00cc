package manual

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func program() *cobra.Command {
	root := &cobra.Command{Use: "prog", Short: "do things", Long: `prog does things, as one
does.

WHERE
  At a place such as C:\dir, or
  .hidden, or 'quoted'.

EXIT STATUS
  0    done
  124  it took too long, which
       goes  on here
  prog itself has no other.`, Example: "  prog go --fast\n    it goes"}
	root.PersistentFlags().StringP("place", "p", "here", "the `place` to go to")
	run := func(*cobra.Command, []string) {}
	child := &cobra.Command{Use: "go [WHERE]", Short: "go there", Run: run}
	child.Flags().Bool("fast", false, "in a hurry")
	hidden := &cobra.Command{Use: "secret", Hidden: true, Run: run}
	root.AddCommand(child, hidden, Command(1, "1.2"))
	return root
}

const want = `.TH "PROG" 1 "" "prog 1.2"
.nh
.ad l
.SH NAME
prog \- do things
.SH SYNOPSIS
\fBprog COMMAND ...\fR
.br
.SH DESCRIPTION
prog does things, as one
does.
.PP
.SH WHERE
At a place such as C:\edir, or
\&.hidden, or 'quoted'.
.PP
.SH EXIT STATUS
.TP
\fB0\fR
done
.TP
\fB124\fR
it took too long, which
goes  on here
.PP
prog itself has no other.
.SH COMMANDS
.TP
\fBgo\fR
go there
.SH OPTIONS
.TP
\fB\-p\fR, \fB\-\-place\fR \fIplace\fR
the place to go to (default here)
.SH EXAMPLES
.nf
prog go \-\-fast
  it goes
.fi
.SH SEE ALSO
.BR prog\-go (1)
`

func TestPage(t *testing.T) {
	if got := string(Page(program(), 1, "1.2")); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// There is a page for each command that is shown, and none for others; roff finds no fault in them.
func TestPages(t *testing.T) {
	dir := t.TempDir()
	root := program()
	root.SetArgs([]string{"manual", dir})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(pages) != 2 {
		t.Fatal(pages, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "prog-go.1"))
	for _, part := range []string{"prog go [WHERE] [flags]", `\-\-fast`, "OPTIONS OF ALL COMMANDS", ".BR prog (1)"} {
		if err != nil || !strings.Contains(string(text), part) {
			t.Errorf("%q is missing in\n%s %v", part, text, err)
		}
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("no groff: install groff-base")
	}
	for _, page := range pages {
		if out, err := exec.Command(groff, "-man", "-Tutf8", "-ww", "-z", page).CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
			t.Errorf("%s: %s %v", page, out, err)
		}
	}
}
