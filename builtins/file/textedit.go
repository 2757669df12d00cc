package file

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
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
		Op: "file.line", Path: in.Path, Attr: attr, Follow: true,
		Edit:    ofText(wish.edit, in.Line, in.Match, in.After, in.Before),
		Parents: in.Parents && !wish.absent, Backup: in.Backup, InPlace: in.Inplace,
	}, in.Validate)
}

// byteOrderMark is how some programs, most of them on Windows, begin a file of UTF-8.
const byteOrderMark = "\ufeff"

// ofText lets an edit see a text without its byte order mark, which is no part of the first line, and puts that back; unless
// what was said names it. A file of UTF-16 is refused: what an edit puts in would not be text in it.
func ofText(edited func(context.Context, []byte) ([]byte, error), said ...string) func(context.Context, []byte) ([]byte, error) {
	return func(ctx context.Context, old []byte) ([]byte, error) {
		wide := bytes.HasPrefix(old, []byte("\xff\xfe")) || bytes.HasPrefix(old, []byte("\xfe\xff"))
		switch {
		case wide && bytes.IndexByte(old, 0) >= 0:
			return nil, fault.Refuse("the file is UTF-16, and only text whose lines end in one byte is edited; write the whole file")
		case !bytes.HasPrefix(old, []byte(byteOrderMark)) || namedMark().MatchString(strings.Join(said, " ")):
			return edited(ctx, old)
		}
		text, err := edited(ctx, old[len(byteOrderMark):])
		if err != nil {
			return nil, err
		}
		if len(byteOrderMark)+len(text) > edit.MaxEdit {
			return nil, edit.ErrTooLarge
		}
		return slices.Concat([]byte(byteOrderMark), text), nil
	}
}

// namedMark matches a byte order mark in a text, and the way in which a pattern names one.
var namedMark = lazyregexp.New(`\x{feff}|\\x\{0*[fF][eE][fF][fF]\}`)

// wish is what a caller wants of the lines of a file.
type wish struct {
	line                 string
	absent               bool
	match, after, before *pattern
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
		to   **pattern
	}{{in.Match, &w.match}, {in.After, &w.after}, {in.Before, &w.before}} {
		if p.text == "" {
			continue
		}
		compiled, err := compile(p.text, false)
		if err != nil {
			return nil, err
		}
		*p.to = compiled
	}
	return w, nil
}

// edit makes the new content, out of the memory of the old one where it can. Lines keep their ends; the line that is put in
// has that of the others.
func (w *wish) edit(ctx context.Context, old []byte) ([]byte, error) {
	if old == nil && w.absent {
		return nil, nil
	}
	if w.absent {
		return w.without(ctx, old)
	}
	return w.with(ctx, old)
}

// eachLine calls f for each line of a text: it is text[from:to] without its end, and the next one begins at next.
func eachLine(ctx context.Context, text []byte, f func(from, to, next int) error) error {
	for from, n := 0, 0; from < len(text); n++ {
		if n%checkEvery == 0 {
			if err := context.Cause(ctx); err != nil {
				return err
			}
		}
		next := len(text)
		if at := bytes.IndexByte(text[from:], '\n'); at >= 0 {
			next = from + at + 1
		}
		if err := f(from, from+len(bare(text[from:next])), next); err != nil {
			return err
		}
		from = next
	}
	return nil
}

func bare(line []byte) []byte { return bytes.TrimRight(line, "\r\n") }

// without moves the lines that stay together.
func (w *wish) without(ctx context.Context, text []byte) ([]byte, error) {
	kept := text[:0]
	err := eachLine(ctx, text, func(from, to, next int) error {
		goes := w.match == nil && string(text[from:to]) == w.line
		if w.match != nil {
			var err error
			if goes, err = w.match.matches(ctx, text[from:to]); err != nil {
				return err
			}
		}
		if !goes {
			kept = append(kept, text[from:next]...)
		}
		return nil
	})
	return kept, err
}

func (w *wish) with(ctx context.Context, old []byte) ([]byte, error) {
	at, err := w.place(ctx, old)
	if err != nil || at == nil {
		return old, err
	}
	line := w.line
	if at.isNew {
		end := "\n"
		if first := bytes.IndexByte(old, '\n'); first > 0 && old[first-1] == '\r' {
			end = "\r\n"
		}
		if at.from > 0 && old[at.from-1] != '\n' { // the last line has no end
			line = end + line
		}
		line += end
	}
	size := len(old) - (at.to - at.from) + len(line)
	if size > edit.MaxEdit {
		return nil, edit.ErrTooLarge
	}
	edited := make([]byte, 0, size)
	return append(append(append(edited, old[:at.from]...), line...), old[at.to:]...), nil
}

// errStands ends the search for the place of a line.
var errStands = errors.New("the line stands there")

// span is the line that is replaced, without its end, or the place where a new one comes.
type span struct {
	from, to int
	isNew    bool
}

// place returns where the line comes; nil: it stands there.
func (w *wish) place(ctx context.Context, old []byte) (*span, error) {
	var last, after, before *span
	err := eachLine(ctx, old, func(from, to, next int) error {
		text := old[from:to]
		found := func(p *pattern) (found bool, err error) {
			if p == nil {
				return false, nil
			}
			return p.matches(ctx, text)
		}
		replaced, err := found(w.match)
		switch {
		case err != nil:
			return err
		case replaced:
			last = &span{from: from, to: to}
		case string(text) == w.line: // it is not one of those to be replaced, so it is what became of one
			return errStands
		}
		if ok, err := found(w.after); err != nil {
			return err
		} else if ok {
			after = &span{next, next, true}
		}
		if before == nil {
			ok, err := found(w.before)
			if ok {
				before = &span{from, from, true}
			}
			return err
		}
		return nil
	})
	switch {
	case errors.Is(err, errStands):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return cmp.Or(last, after, before, &span{len(old), len(old), true}), nil
}

// replace replaces all that matches.
func (r *Room) replace(ctx context.Context, call *builtins.Call, in *pb.ReplaceArgs) (*pb.Changed, error) {
	transform, err := replacing(in)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.put(ctx, call, edit.File{
		Op: "file.replace", Path: in.Path, Follow: true, Backup: in.Backup, InPlace: in.Inplace,
		Edit: ofText(transform, in.Pattern, in.Replacement),
	}, in.Validate)
}

// replacing makes the edit. One that would change its own result is most likely a slip: each run would change more.
func replacing(in *pb.ReplaceArgs) (func(context.Context, []byte) ([]byte, error), error) {
	if in.Pattern == "" {
		return nil, fault.Invalid("the pattern is empty")
	}
	find := func(_ context.Context, text []byte, from int) ([]int, error) {
		at := bytes.Index(text[from:], []byte(in.Pattern))
		if at < 0 {
			return nil, nil
		}
		return []int{from + at, from + at + len(in.Pattern)}, nil
	}
	expand := func(edited, by, _ []byte, _ []int) ([]byte, error) { return append(edited, by...), nil }
	if !in.Literal {
		pattern, err := compile(in.Pattern, true) // what is edited consists of lines
		if err != nil {
			return nil, err
		}
		if err := pattern.checkReferences(in.Replacement); err != nil {
			return nil, err
		}
		find, expand = pattern.find, pattern.expand
	}
	once := func(ctx context.Context, old []byte) ([]byte, error) {
		r := &replacer{old: old, text: old, by: []byte(in.Replacement), find: find, expand: expand}
		if !namesCarriageReturn(in.Pattern, in.Literal) {
			r.forLines()
		}
		return r.all(ctx)
	}
	return func(ctx context.Context, old []byte) ([]byte, error) {
		if old == nil {
			return nil, fs.ErrNotExist
		}
		edited, err := once(ctx, old)
		if err != nil || in.Again || bytes.Equal(edited, old) {
			return edited, err
		}
		again, err := once(ctx, edited)
		if ended := context.Cause(ctx); ended != nil {
			return nil, ended
		}
		if err != nil || !bytes.Equal(again, edited) {
			return nil, &fault.Error{
				Err:  fault.Invalid("a second run would change it again: the pattern matches what comes in its place"),
				Hint: `make the pattern match only what is to be replaced, as with ^ and $, the ends of a line; or say again = true`,
			}
		}
		return edited, nil
	}, nil
}

// replacer replaces all matches in a text.
type replacer struct {
	old []byte // what is edited
	by  []byte // what comes in the place of a match, with references to groups
	// text is what is searched: old without the carriage returns at the ends of lines, of which removed holds the places in it.
	text    []byte
	removed []int
	find    func(ctx context.Context, text []byte, from int) ([]int, error)
	expand  func(edited, by, old []byte, at []int) ([]byte, error)
}

// namesCarriageReturn reports whether a pattern is about carriage returns itself.
func namesCarriageReturn(pattern string, literal bool) bool {
	return strings.Contains(pattern, "\r") || !literal && carriageReturn().MatchString(pattern)
}

// carriageReturn matches the ways in which a pattern names one.
var carriageReturn = lazyregexp.New(`\\(r|x0[dD]|x\{0*[dD]\}|015)`)

// forLines lets an end of a line be CR LF: the pattern sees a line feed there, as ^ and $ do, and the ends of lines stay as
// they are. In a text whose lines end so, those that are put in do, too.
func (r *replacer) forLines() {
	if !bytes.Contains(r.old, []byte("\r\n")) {
		return
	}
	if first := bytes.IndexByte(r.old, '\n'); r.old[max(first-1, 0)] == '\r' && !bytes.Contains(r.by, []byte("\r")) {
		r.by = bytes.ReplaceAll(r.by, []byte("\n"), []byte("\r\n"))
	}
	r.text = make([]byte, 0, len(r.old))
	for i, c := range r.old {
		if c == '\r' && i+1 < len(r.old) && r.old[i+1] == '\n' {
			r.removed = append(r.removed, len(r.text))
			continue
		}
		r.text = append(r.text, c)
	}
}

// place returns where in old a place in text is. That of a line feed is in front of its carriage return.
func (r *replacer) place(at int) int {
	if at < 0 || len(r.removed) == 0 {
		return at
	}
	return at + sort.SearchInts(r.removed, at)
}

// all does what ReplaceAll of package regexp does, within bounds of time and memory.
func (r *replacer) all(ctx context.Context) ([]byte, error) {
	edited, from := make([]byte, 0, min(len(r.old)+len(r.by), edit.MaxEdit)), 0
	for pos, last, n := 0, -1, 0; pos <= len(r.text); n++ {
		if n%checkEvery == 0 {
			if err := context.Cause(ctx); err != nil {
				return nil, err
			}
		}
		at, err := r.find(ctx, r.text, pos)
		if err != nil {
			return nil, err
		}
		if at == nil {
			break
		}
		counts := at[1] > pos || at[0] != last // an empty match right after another one does not
		if pos, last = at[1], at[1]; at[0] == at[1] {
			_, width := utf8.DecodeRune(r.text[pos:])
			pos += max(width, 1)
		}
		if !counts {
			continue
		}
		for i := range at {
			at[i] = r.place(at[i])
		}
		edited = append(edited, r.old[from:at[0]]...)
		if edited, err = r.expand(edited, r.by, r.old, at); err != nil {
			return nil, err
		}
		if from = at[1]; len(edited) > edit.MaxEdit {
			return nil, edit.ErrTooLarge
		}
	}
	edited = append(edited, r.old[from:]...)
	if len(edited) > edit.MaxEdit {
		return nil, edit.ErrTooLarge
	}
	return edited, nil
}

// reference matches what stands for a group in a replacement, and $$.
var reference = lazyregexp.New(`\$(?:\$|\{(\w+)\}|(\w+))`)

// foreignReference matches what stands for a group in Lua's own patterns, in sed and in Python.
var foreignReference = lazyregexp.New(`%[1-9]|\\[1-9]|\\g<\w+>`)

// checkReferences refuses a replacement with a reference to a group that the pattern does not have: it would stand for
// nothing; and one with references of another language: they would stand for themselves.
func (p *pattern) checkReferences(by string) error {
	if found := foreignReference().FindString(by); found != "" && p.alone.NumSubexp() > 0 && !reference().MatchString(by) {
		return fault.Invalid("%s stands for itself, a group is written $1; if none is meant begin those of the pattern with (?:",
			found)
	}
	for {
		found := reference().FindStringSubmatch(by)
		if found == nil {
			return nil
		}
		by = by[strings.Index(by, found[0])+len(found[0]):]
		name := found[1] + found[2]
		number, err := strconv.Atoi(name)
		if name != "" && !(err == nil && number <= p.alone.NumSubexp()) && p.alone.SubexpIndex(name) < 0 {
			return fault.Invalid("the pattern has no group %s for %s; write ${1}_ for a group before text, and $$ for $", name, found[0])
		}
	}
}

// expand appends a replacement, in whose references the groups of a match come, reference by reference: each may be long.
func (p *pattern) expand(edited, by, old []byte, at []int) ([]byte, error) {
	for len(by) > 0 {
		n := len(by)
		if next := bytes.IndexByte(by[1:], '$'); next >= 0 {
			n = 1 + next
		}
		if by[0] == '$' && n == 1 && len(by) > 1 { // $$ is one
			n = 2
		}
		edited = p.alone.Expand(edited, by[:n], old, at)
		if len(edited) > edit.MaxEdit {
			return nil, edit.ErrTooLarge
		}
		by = by[n:]
	}
	return edited, nil
}
