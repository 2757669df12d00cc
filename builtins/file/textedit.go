package file

import (
	"bytes"
	"context"
	"io/fs"
	"regexp"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// line makes a line stand in a file, or takes lines away. Of a line that stands there already nothing is changed.
func (r *Room) line(ctx context.Context, call *builtins.Call, in *pb.LineArgs) (*pb.Changed, error) {
	attr, err := r.attr(call, in.Mode, in.Owner, in.Group)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	wish, err := newWish(in)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.put(ctx, call, edit.File{
		Op: "file.line", Path: in.Path, Attr: attr, Edit: wish.edit, Follow: true,
		Parents: in.Parents && !wish.absent, Backup: in.Backup, InPlace: in.Inplace,
	})
}

// wish is what a caller wants of the lines of a file.
type wish struct {
	line                 string
	absent               bool
	match, after, before *regexp.Regexp
}

func newWish(in *pb.LineArgs) (*wish, error) {
	w := &wish{line: in.Line, absent: in.State == "absent"}
	switch {
	case in.State != "" && in.State != "present" && in.State != "absent":
		return nil, fault.Invalid(`state is %q, and neither "present" nor "absent"`, in.State)
	case strings.ContainsAny(in.Line, "\n\r"):
		return nil, fault.Invalid("line holds the end of a line")
	case w.absent && (in.After != "" || in.Before != ""):
		return nil, fault.Invalid("after and before say where a new line comes, and none comes with state \"absent\"")
	case in.After != "" && in.Before != "":
		return nil, fault.Invalid("both after and before are said")
	case w.absent && in.Line != "" && in.Match != "":
		return nil, fault.Invalid("which lines go is said by line or by match, not by both")
	case in.Line == "" && in.Match == "":
		return nil, fault.Invalid("neither line nor match is said")
	case !w.absent && in.Line == "":
		return nil, fault.Invalid("line is not said")
	}
	for _, p := range []struct {
		text string
		to   **regexp.Regexp
	}{{in.Match, &w.match}, {in.After, &w.after}, {in.Before, &w.before}} {
		if p.text == "" {
			continue
		}
		compiled, err := compile(p.text)
		if err != nil {
			return nil, err
		}
		*p.to = compiled
	}
	return w, nil
}

func compile(pattern string) (*regexp.Regexp, error) {
	compiled, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fault.Invalid("%s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	return compiled, nil
}

// edit makes the new content. Lines keep their ends; the line that is put in has that of the others.
func (w *wish) edit(old []byte) ([]byte, error) {
	if old == nil && w.absent {
		return nil, nil
	}
	lines := bytes.SplitAfter(old, []byte("\n"))
	if last := len(lines) - 1; len(lines[last]) == 0 {
		lines = lines[:last]
	}
	end := "\n"
	if len(lines) > 0 && bytes.HasSuffix(lines[0], []byte("\r\n")) {
		end = "\r\n"
	}
	if w.absent {
		return w.without(lines), nil
	}
	return w.with(lines, end), nil
}

func bare(line []byte) []byte { return bytes.TrimRight(line, "\r\n") }

func (w *wish) without(lines [][]byte) []byte {
	kept := []byte{}
	for _, line := range lines {
		if w.match != nil && w.match.Match(bare(line)) || w.match == nil && string(bare(line)) == w.line {
			continue
		}
		kept = append(kept, line...)
	}
	return kept
}

func (w *wish) with(lines [][]byte, end string) []byte {
	at, found := w.place(lines)
	switch {
	case found && at < 0: // it stands there
	case found:
		own := lines[at][len(bare(lines[at])):]
		lines[at] = append([]byte(w.line), own...)
	default:
		if at > 0 && !bytes.HasSuffix(lines[at-1], []byte("\n")) { // the last line has no end
			lines[at-1] = append(append([]byte{}, lines[at-1]...), end...)
		}
		rest := append([][]byte{[]byte(w.line + end)}, lines[at:]...)
		lines = append(lines[:at:at], rest...)
	}
	return append([]byte{}, bytes.Join(lines, nil)...)
}

// place says which line is replaced (found), that the line stands there (found, and at -1), or before which one it comes.
func (w *wish) place(lines [][]byte) (at int, found bool) {
	last, after, before := -1, -1, -1
	for i, line := range lines {
		text := bare(line)
		switch {
		case w.match != nil && w.match.Match(text):
			last = i
		case string(text) == w.line: // it is not one of those to be replaced, so it is what became of one
			return -1, true
		}
		if w.after != nil && w.after.Match(text) {
			after = i + 1
		}
		if w.before != nil && before < 0 && w.before.Match(text) {
			before = i
		}
	}
	switch {
	case last >= 0:
		return last, true
	case after >= 0:
		return after, false
	case before >= 0:
		return before, false
	}
	return len(lines), false
}

// replace replaces all that matches.
func (r *Room) replace(ctx context.Context, call *builtins.Call, in *pb.ReplaceArgs) (*pb.Changed, error) {
	transform, err := replacing(in)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.put(ctx, call, edit.File{Op: "file.replace", Path: in.Path, Edit: transform, Follow: true, Backup: in.Backup, InPlace: in.Inplace})
}

// replacing makes the edit. One that would change its own result is most likely a slip: each run would change more.
func replacing(in *pb.ReplaceArgs) (func([]byte) ([]byte, error), error) {
	if in.Pattern == "" {
		return nil, fault.Invalid("the pattern is empty")
	}
	once := func(old []byte) ([]byte, error) { return replaceText(old, []byte(in.Pattern), []byte(in.Replacement)) }
	if !in.Literal {
		pattern, err := compile("(?m)" + in.Pattern) // what is edited consists of lines
		if err != nil {
			return nil, err
		}
		if pattern.NumSubexp() > maxGroups {
			return nil, fault.Wrapf(fault.ErrTooLarge, "the pattern has more than %d groups", maxGroups)
		}
		once = func(old []byte) ([]byte, error) { return replaceMatches(old, pattern, []byte(in.Replacement)) }
	}
	return func(old []byte) ([]byte, error) {
		if old == nil {
			return nil, fs.ErrNotExist
		}
		edited, err := once(old)
		if err != nil || in.Again || bytes.Equal(edited, old) {
			return edited, err
		}
		if again, err := once(edited); err != nil || !bytes.Equal(again, edited) {
			return nil, &fault.Error{
				Err:  fault.Invalid("a second run would change it again: the pattern matches what comes in its place"),
				Hint: `make the pattern match only what is to be replaced, as with ^ and $, the ends of a line; or say again = true`,
			}
		}
		return edited, nil
	}, nil
}

// Bounds of an edit, so that no pattern costs the agent its memory.
const (
	maxGroups  = 20
	maxMatches = 100_000
)

var errEdited = fault.Wrapf(fault.ErrTooLarge, "the file would have more than %d bytes", edit.MaxContent)

func replaceText(old, text, by []byte) ([]byte, error) {
	if n := int64(bytes.Count(old, text)); n > 0 && int64(len(old))+n*int64(len(by)-len(text)) > edit.MaxContent {
		return nil, errEdited
	}
	return append([]byte{}, bytes.ReplaceAll(old, text, by)...), nil
}

func replaceMatches(old []byte, pattern *regexp.Regexp, by []byte) ([]byte, error) {
	found := pattern.FindAllSubmatchIndex(old, maxMatches+1)
	if len(found) > maxMatches {
		return nil, fault.Wrapf(fault.ErrTooLarge, "more than %d places match", maxMatches)
	}
	references := bytes.Count(by, []byte("$"))
	edited, from := []byte{}, 0
	for _, at := range found {
		edited = append(edited, old[from:at[0]]...)
		if len(edited)+len(by)+references*(at[1]-at[0]) > 4*edit.MaxContent { // the most that it can become
			return nil, errEdited
		}
		edited = pattern.Expand(edited, by, old, at)
		from = at[1]
	}
	edited = append(edited, old[from:]...)
	if len(edited) > edit.MaxContent {
		return nil, errEdited
	}
	return edited, nil
}
