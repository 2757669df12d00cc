package rawio

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

func TestServe(t *testing.T) {
	for _, test := range []struct {
		role, in string
		bytes    int64
		want     int // bytes that come back
	}{
		{Echo, "hello", 0, 5},
		{Sink, strings.Repeat("x", 2*(Block+1)), Block + 1, 2},
		{Source, "gg", Block + 1, 2 * (Block + 1)},
	} {
		var out bytes.Buffer
		if err := Serve(test.role, strings.NewReader(test.in), &out, test.bytes); err != io.EOF {
			t.Errorf("%s: %v, want the reader's end", test.role, err)
		}
		if out.Len() != test.want {
			t.Errorf("%s answered %d bytes, want %d", test.role, out.Len(), test.want)
		}
	}
}

func TestServeRefuses(t *testing.T) {
	for _, role := range []string{"", "eccho", Sink, Source} {
		if err := Serve(role, strings.NewReader("x"), io.Discard, 0); err == nil || err == io.EOF {
			t.Errorf("role %q without a length: %v", role, err)
		}
	}
}
