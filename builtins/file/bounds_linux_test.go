package file_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// heapRise returns how far the heap rose above what it was before f, at most.
func heapRise(t *testing.T, f func()) int64 {
	t.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	heap := func() int64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	runtime.GC()
	before, most := heap(), int64(0)
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	for {
		select {
		case <-done:
			return most - before
		case <-time.After(5 * time.Millisecond):
			most = max(most, heap())
		}
	}
}

// No call with the largest input, or the worst of its size, takes more than a small multiple of a file that may be edited.
func TestEditsAreBounded(t *testing.T) {
	const most = 48 << 20
	lines, letters := strings.Repeat("\n", 8<<20-8), strings.Repeat("a\n", 4<<20)
	line := func(change func(*pb.LineArgs)) *pb.LineArgs {
		in := &pb.LineArgs{Path: "/f", Line: "x"}
		change(in)
		return in
	}
	for name, c := range map[string]struct {
		old, op, code string
		in            proto.Message
	}{
		"lines without content":  {lines, "file.line", "", line(func(in *pb.LineArgs) { in.After = "y" })},
		"lines that go":          {letters, "file.line", "", &pb.LineArgs{Path: "/f", Match: "^b?$", State: "absent"}},
		"a file too large":       {lines + strings.Repeat("\n", 9), "file.line", "too_large", line(func(*pb.LineArgs) {})},
		"a long pattern":         {"a\n", "file.line", "too_large", line(func(in *pb.LineArgs) { in.Match = strings.Repeat("a?", 1500000) })},
		"a pattern that repeats": {"a\n", "file.line", "too_large", line(func(in *pb.LineArgs) { in.Match = strings.Repeat("a{1000}", 500) })},
		"groups that repeat":     {letters, "file.replace", "too_large", &pb.ReplaceArgs{Path: "/f", Pattern: strings.Repeat("(a{1000})", 20)}},
		"a long line":            {letters, "file.line", "too_large", line(func(in *pb.LineArgs) { in.Line = strings.Repeat("x", 8<<20-1) })},
		"a block of many lines":  {"", "file.block", "", &pb.BlockArgs{Path: "/f", Marker: "m", Text: lines[100:]}},
		"a block too many":       {letters, "file.block", "too_large", &pb.BlockArgs{Path: "/f", Marker: "m", Text: letters}},
		"a long marker":          {"", "file.block", "too_large", &pb.BlockArgs{Path: "/f", Marker: letters[:1] + strings.Repeat("m", 8<<20)}},
		"many matches":           {lines, "file.replace", "too_large", &pb.ReplaceArgs{Path: "/f", Pattern: "^", Replacement: "xx"}},
		"many references": {letters, "file.replace", "too_large",
			&pb.ReplaceArgs{Path: "/f", Pattern: "(?s).*", Replacement: strings.Repeat("$0", 1<<20)}},
		"a deep path": {"", "file.mkdir", "too_large", &pb.MkdirArgs{Path: strings.Repeat("/x", 2000), Parents: true}},
		"a value that comes often": {"", "file.template", "too_large",
			&pb.TemplateArgs{Path: "/f", Text: strings.Repeat("{{a|raw}}", 2000), Vars: map[string]string{"a": strings.Repeat("x", 4000000)}}},
		"a value that grows": {"", "file.template", "too_large",
			&pb.TemplateArgs{Path: "/f", Text: "{{a|json}}", Vars: map[string]string{"a": strings.Repeat("\x01", 8<<20)}}},
		"a line for each value": {"", "file.template", "invalid",
			&pb.TemplateArgs{Path: "/f", Text: strings.Repeat("{{a}}\n", 1<<20) + "{{b}}", Vars: map[string]string{"a": ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, file.Config{})
			g.write("/f", c.old)
			c.old = ""
			rise := heapRise(t, func() {
				if _, err := run[proto.Message](g, c.op, c.in); fault.Code(err) != c.code {
					t.Errorf("got %v, want %q", err, c.code)
				}
			})
			if rise > most {
				t.Errorf("the heap rose by %d MiB", rise>>20)
			}
		})
	}
}

// A search that would never end heeds its context.
func TestEditsEndWithTheirContext(t *testing.T) {
	long := strings.Repeat("a", 4000000)
	for _, in := range []proto.Message{
		&pb.ReplaceArgs{Path: "/f", Pattern: "a(?:.*b)?", Replacement: "c"},
		&pb.LineArgs{Path: "/f", Match: strings.Repeat("a*", 1500) + "$b", Line: "x"},
	} {
		name := map[bool]string{true: "file.replace", false: "file.line"}[fmt.Sprintf("%T", in) == "*pb.ReplaceArgs"]
		g := newGuest(t, file.Config{})
		g.write("/f", long)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		op := g.table.Script(name)
		if _, err := g.calls.Execute(ctx, g.call, op, in); fault.Code(err) != "cancelled" {
			t.Errorf("%s: %v", name, err)
		}
		if info, err := os.Stat(g.dir + "/f"); err != nil || info.Size() != int64(len(long)) {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}
