package file

import (
	"context"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestBlock(t *testing.T) {
	const begin, end = "# BEGIN web\n", "# END web\n"
	for _, c := range []struct {
		old, want string
		in        *pb.BlockArgs
		wrong     string
	}{
		{"", begin + "a\nb\n" + end, &pb.BlockArgs{Text: "a\nb\n"}, ""},
		{"x\n", "x\n" + begin + "a\n" + end, &pb.BlockArgs{Text: "a"}, ""},
		{"x", "x\n" + begin + "a\n" + end, &pb.BlockArgs{Text: "a"}, ""},
		{"x\n" + begin + "old\nolder\n" + end + "y\n", "x\n" + begin + "a\n" + end + "y\n", &pb.BlockArgs{Text: "a"}, ""},
		{"x\n" + begin + "a\n" + end + "y", "x\n" + begin + "a\n" + end + "y", &pb.BlockArgs{Text: "a"}, ""},
		{begin + "a\n# END web", begin + "b\n" + end, &pb.BlockArgs{Text: "b"}, ""},
		{begin + end, begin + "\n" + end, &pb.BlockArgs{Text: "\n"}, ""},
		{"x\n" + begin + "a\n" + end, "x\n" + begin + end, &pb.BlockArgs{}, ""},
		{"x\n" + begin + "a\n" + end + "y\n", "x\ny\n", &pb.BlockArgs{State: "absent"}, ""},
		{"x", "x", &pb.BlockArgs{State: "absent"}, ""},
		{"x\r\ny\r\n", "x\r\ny\r\n# BEGIN web\r\na\r\nb\r\n# END web\r\n", &pb.BlockArgs{Text: "a\nb"}, ""},
		{"x\r\n# BEGIN web\r\na\r\n# END web\r\n", "x\r\n", &pb.BlockArgs{State: "absent"}, ""},
		{"# BEGIN other\n# END other\n", "# BEGIN other\n# END other\n" + begin + "a\n" + end, &pb.BlockArgs{Text: "a"}, ""},
		{"x\n", "x\n; BEGIN web\na\n; END web\n", &pb.BlockArgs{Text: "a", Comment: ";"}, ""},
		{"x\n", "x\n<!-- BEGIN web -->\na\n<!-- END web -->\n", &pb.BlockArgs{Text: "a", Comment: "<!--"}, ""},
		{"x\n<!-- BEGIN web -->\n<!-- END web -->\n", "x\n", &pb.BlockArgs{State: "absent", Comment: "<!--", Marker: "web -->"}, ""},
		{"", "  /* BEGIN web */\na\n  /* END web */\n", &pb.BlockArgs{Text: "a", Comment: "  /*"}, ""},
		{begin + "a\n", "", &pb.BlockArgs{Text: "a"}, "has no end"},
		{end, "", &pb.BlockArgs{Text: "a"}, "line 1: # END web without its beginning"},
		{begin + end + begin + end, "", &pb.BlockArgs{Text: "a"}, "line 3: # BEGIN web stands there a second time"},
		{begin + begin + end, "", &pb.BlockArgs{State: "absent"}, "line 2"},
		{"", "", &pb.BlockArgs{Text: "a\n# END web\nb"}, "a line that marks the block"},
		{"", "", &pb.BlockArgs{Text: "a", State: "absent"}, "no text"},
		{"", "", &pb.BlockArgs{Text: "a", State: "gone"}, "neither"},
		{"", "", &pb.BlockArgs{Text: "a", Marker: "a\nb"}, "end of a line"},
		{"", "", &pb.BlockArgs{Text: "a", Marker: " "}, "marker is missing"},
		{"", "", &pb.BlockArgs{Text: "\x00"}, "zero byte"},
	} {
		if c.in.Marker == "" {
			c.in.Marker = "web"
		}
		b, err := newBlock(c.in)
		var got []byte
		if err == nil {
			got, err = b.edit(context.Background(), []byte(c.old))
		}
		switch {
		case c.wrong != "":
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%v in %q: %v, want %s", c.in, c.old, err, c.wrong)
			}
			continue
		case err != nil || string(got) != c.want:
			t.Errorf("%v in %q: %q, %v, want %q", c.in, c.old, got, err, c.want)
			continue
		}
		if again, err := b.edit(context.Background(), got); err != nil || string(again) != c.want {
			t.Errorf("%v in %q a second time: %q, %v", c.in, c.old, again, err)
		}
	}
}
