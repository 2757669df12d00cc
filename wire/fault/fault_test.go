package fault

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Every code of the table survives the way over the wire, in both directions.
func TestCodesSurviveTheWire(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range table {
		if seen[row.code] {
			t.Errorf("code %s stands twice", row.code)
		}
		seen[row.code] = true
		if row.code == "not_directory" && errors.Is(row.cause, fs.ErrNotExist) {
			continue // Windows has one number for both
		}
		sent := Detail(&Error{Op: "file.write", Object: "/etc/motd", Err: fmt.Errorf("with words: %w", row.cause)})
		bytes, err := proto.Marshal(sent)
		if err != nil {
			t.Fatal(err)
		}
		var got pb.ErrorDetail
		if err := proto.Unmarshal(bytes, &got); err != nil {
			t.Fatal(err)
		}
		if back := FromDetail(&got); !errors.Is(back, row.cause) || got.Code != row.code || got.Op != "file.write" || got.Object != "/etc/motd" {
			t.Errorf("%s came back as %v (%v)", row.code, back, &got)
		}
	}
}

func TestWordsOfAnError(t *testing.T) {
	_, err := os.Open("/nonexistent/file")
	for _, c := range []struct {
		err        error
		text, code string
	}{
		{&Error{Op: "file.read", Object: "/nonexistent/file", Err: Cause(err)}, "file.read /nonexistent/file: no such file or directory", "not_found"},
		{On("/x", err), "/x: no such file or directory", "not_found"},
		{Refuse("no %s here", "entry"), "no entry here", "refused"},
		{errors.New("something else"), "something else", "internal"},
		{fs.ErrExist, "file already exists", "exists"},
	} {
		if c.err.Error() != c.text || Code(c.err) != c.code {
			t.Errorf("got %q, code %q; want %q, %q", c.err, Code(c.err), c.text, c.code)
		}
	}
	if Detail(nil) != nil || FromDetail(nil) != nil || Code(nil) != "" || On("x", nil) != nil {
		t.Error("no error must stay no error")
	}
}
