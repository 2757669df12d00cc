package file

import (
	"bytes"
	"cmp"
	"context"
	"iter"
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
		Op: "file.block", Path: in.Path, Attr: attr, Edit: ofText(b.edit), Follow: true,
		Parents: in.Parents && !b.absent, Backup: in.Backup, InPlace: in.Inplace,
	}, in.Validate)
}

// maxMarker is the most bytes of a line that marks a block.
const maxMarker = 4 << 10

// block is what a caller wants of the lines of a file between two marks.
type block struct {
	begin, end string
	text       string // the lines
	absent     bool
}

// closings are the ends of comments that do not end with their line.
var closings = map[string]string{"<!--": "-->", "/*": "*/"}

func newBlock(in *pb.BlockArgs) (*block, error) {
	b := &block{text: in.Text, absent: in.State == "absent"}
	switch {
	case in.State != "" && in.State != "present" && in.State != "absent":
		return nil, fault.Invalid(`state is %q, and neither "present" nor "absent"`, in.State)
	case strings.TrimSpace(in.Marker) == "":
		return nil, fault.Invalid("marker is missing: it distinguishes the block from others in the file")
	case strings.ContainsAny(in.Marker, "\r\n") || strings.ContainsAny(in.Comment, "\r\n"):
		return nil, fault.Invalid("marker or comment holds the end of a line")
	case len(in.Marker)+len(in.Comment) > maxMarker:
		return nil, fault.Wrapf(fault.ErrTooLarge, "marker and comment have more than %d bytes", maxMarker)
	case b.absent && in.Text != "":
		return nil, fault.Invalid("there is no text with state \"absent\"")
	case strings.ContainsRune(in.Text, 0):
		return nil, fault.Invalid("the text has a zero byte")
	}
	comment := cmp.Or(in.Comment, "#")
	closed := ""
	if mark := closings[strings.TrimSpace(comment)]; !strings.HasSuffix(in.Marker, mark) {
		closed = " " + mark
	}
	b.begin, b.end = comment+" BEGIN "+in.Marker+closed, comment+" END "+in.Marker+closed
	for line := range b.lines() {
		if line == b.begin || line == b.end {
			return nil, fault.Invalid("the text has a line that marks the block")
		}
	}
	return b, nil
}

// lines returns the lines of the text without their ends, none where there is no text. They are not made into a list: a text
// of nothing but ends of lines would have it take many times its own size.
func (b *block) lines() iter.Seq[string] {
	return func(yield func(string) bool) {
		if b.text == "" {
			return
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(b.text, "\n"), "\n") {
			if !yield(strings.TrimSuffix(line, "\r")) {
				return
			}
		}
	}
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
	size := at.from + len(old) - at.to
	if at.from > 0 && old[at.from-1] != '\n' { // the last line has no end
		size += len(ending)
	}
	if !b.absent {
		size += len(b.begin) + len(b.end) + 2*len(ending)
		for line := range b.lines() {
			size += len(line) + len(ending)
		}
	}
	if size > edit.MaxEdit {
		return nil, edit.ErrTooLarge
	}
	edited := append(make([]byte, 0, size), old[:at.from]...)
	put := func(line string) { edited = append(append(edited, line...), ending...) }
	if at.from > 0 && old[at.from-1] != '\n' {
		put("")
	}
	if !b.absent {
		put(b.begin)
		for line := range b.lines() {
			put(line)
		}
		put(b.end)
	}
	return append(edited, old[at.to:]...), nil
}

// place returns where the block stands, with its marks and the end of the last; or where it comes, after all else. nil: it
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
