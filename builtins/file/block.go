package file

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// block makes some lines stand in a file between two lines that mark them, or takes them away.
func (r *Room) block(ctx context.Context, call *builtins.Call, in *pb.BlockArgs) (*pb.Changed, error) {
	attr, err := r.attr(call, in.Mode, in.Owner, in.Group)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	b, err := newBlock(in)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.put(ctx, call, edit.File{
		Op: "file.block", Path: in.Path, Attr: attr, Edit: b.edit, Follow: true,
		Parents: in.Parents && !b.absent, Backup: in.Backup, InPlace: in.Inplace,
	}, in.Validate)
}

// block is what a caller wants of the lines of a file between two marks.
type block struct {
	begin, end string
	lines      []string // without their ends
	absent     bool
}

func newBlock(in *pb.BlockArgs) (*block, error) {
	comment := cmp.Or(in.Comment, "#")
	b := &block{begin: comment + " BEGIN " + in.Marker, end: comment + " END " + in.Marker, absent: in.State == "absent"}
	if text := strings.TrimSuffix(in.Text, "\n"); in.Text != "" {
		for line := range strings.SplitSeq(text, "\n") {
			b.lines = append(b.lines, strings.TrimSuffix(line, "\r"))
		}
	}
	switch {
	case in.State != "" && in.State != "present" && in.State != "absent":
		return nil, fault.Invalid(`state is %q, and neither "present" nor "absent"`, in.State)
	case strings.TrimSpace(in.Marker) == "":
		return nil, fault.Invalid("marker is not said: it tells the block from others in the file")
	case strings.ContainsAny(in.Marker+in.Comment, "\r\n"):
		return nil, fault.Invalid("marker or comment holds the end of a line")
	case b.absent && in.Text != "":
		return nil, fault.Invalid("there is no text with state \"absent\"")
	case slices.Contains(b.lines, b.begin) || slices.Contains(b.lines, b.end):
		return nil, fault.Invalid("the text has a line that marks the block")
	case strings.ContainsRune(in.Text, 0):
		return nil, fault.Invalid("the text has a zero byte")
	}
	return b, nil
}

// edit makes the new content. Lines keep their ends; those that are put in have that of the first.
func (b *block) edit(ctx context.Context, old []byte) ([]byte, error) {
	if old == nil && b.absent {
		return nil, nil
	}
	at, err := b.place(ctx, old)
	if err != nil || at == nil {
		return old, err
	}
	ending := "\n"
	if first := bytes.IndexByte(old, '\n'); first > 0 && old[first-1] == '\r' {
		ending = "\r\n"
	}
	var text strings.Builder
	if at.from > 0 && old[at.from-1] != '\n' { // the last line has no end
		text.WriteString(ending)
	}
	if !b.absent {
		for _, line := range slices.Concat([]string{b.begin}, b.lines, []string{b.end}) {
			text.WriteString(line + ending)
		}
	}
	return slices.Concat(old[:at.from], []byte(text.String()), old[at.to:]), nil
}

// place returns where the block stands, with its marks and the end of the last; or where it comes, behind all else. nil: it
// is not there, and is not to be. Marks that are no pair are an error: nobody knows what is between them.
func (b *block) place(ctx context.Context, old []byte) (*span, error) {
	found, open, line := (*span)(nil), -1, 0
	err := eachLine(ctx, old, func(from, to, next int) error {
		line++
		switch string(old[from:to]) {
		case b.begin:
			if open >= 0 || found != nil {
				return fault.Invalid("line %d: %s stands there a second time", line, b.begin)
			}
			open = from
		case b.end:
			if open < 0 {
				return fault.Invalid("line %d: %s without its beginning", line, b.end)
			}
			found, open = &span{from: open, to: next}, -1
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case open >= 0:
		return nil, fault.Invalid("%s has no end", b.begin)
	case found == nil && !b.absent:
		return &span{from: len(old), to: len(old)}, nil
	}
	return found, nil
}
