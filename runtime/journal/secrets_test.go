package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What an undo says is told without secrets; where they are not known any more, nothing of it is, but what kind of error it
// was.
func TestUndoTellsNoSecrets(t *testing.T) {
	said := fmt.Errorf("no login with s3cr3t: %w", fs.ErrNotExist)
	hide := func(s string) string { return strings.ReplaceAll(s, "s3cr3t", "[secret]") }
	for want, tx := range map[string]*Tx{
		said.Error(): {begin: &pb.JournalBegin{}},
		"no login with [secret]: file does not exist":                                {begin: &pb.JournalBegin{Secrets: true}, hide: hide},
		"it failed (not_found); its text is withheld, since the request had secrets": {begin: &pb.JournalBegin{Secrets: true}},
	} {
		if err := tx.withoutSecrets(said); err.Error() != want || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q, want %q", err, want)
		}
		if tx.withoutSecrets(nil) != nil {
			t.Error("an error of nothing")
		}
	}
}
