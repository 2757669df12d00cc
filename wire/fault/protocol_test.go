package fault

import (
	"os"
	"strings"
	"testing"
)

// The codes of wire/PROTOCOL.md are those of the table, all of them, and tell rightly what is worth a second try.
func TestProtocolCodes(t *testing.T) {
	page, err := os.ReadFile("../PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, codes, _ := strings.Cut(string(page), "| code | retry | meaning |\n|---|---|---|\n")
	codes, _, _ = strings.Cut(codes, "\n\n")
	lines := strings.Split(codes, "\n")
	if len(lines) != len(table) {
		t.Fatalf("%d codes on the page, %d in the table", len(lines), len(table))
	}
	for i, row := range table {
		retry := map[bool]string{true: "yes", false: "no"}[row.retry]
		if want := "| " + row.code + " | " + retry + " | "; !strings.HasPrefix(lines[i], want) {
			t.Errorf("the page has %q where %q is due", lines[i], want)
		}
	}
}
