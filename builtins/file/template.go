package file

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (r *Room) template(ctx context.Context, call *builtins.Call, in *pb.TemplateArgs) (*pb.Changed, error) {
	text, err := expand(ctx, in.Text, in.Vars)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	attr, err := r.attr(call, in.Mode, in.Owner, in.Group)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	return r.put(ctx, call, edit.File{
		Op: "file.template", Path: in.Path, Attr: attr, Content: text, Parents: in.Parents, Backup: in.Backup,
	}, in.Validate)
}

// expand puts the value of each {{name}} or {{name|filter}} in its place; blanks inside the braces do not count. Two
// literal braces are written {{"{{"}}; a pair of closing ones that belongs to nothing stays. A name without a value, a value
// without use and a brace without an end are errors that name the line: each is most likely a slip.
func expand(ctx context.Context, text string, vars map[string]string) ([]byte, error) {
	var to expanded
	line, counted := 1, 0 // of the text before counted
	used := map[string]bool{}
	rest := text
	for {
		before, after, found := strings.Cut(rest, "{{")
		if _, err := io.WriteString(&to, before); err != nil {
			return nil, err
		}
		if !found {
			break
		}
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		at := len(text) - len(after)
		line, counted = line+strings.Count(text[counted:at], "\n"), at
		var err error
		if rest, err = place(&to, after, vars, used); errors.Is(err, edit.ErrTooLarge) {
			return nil, err
		} else if err != nil {
			return nil, fault.Invalid("line %d: %v", line, err)
		}
	}
	for _, name := range sorted(vars) {
		if !used[name] {
			return nil, fault.Invalid("the value %s is not used: there is no {{%s}} in the text", name, name)
		}
	}
	return to.text, nil
}

// place writes what comes in the place of two braces and what follows them, and returns the text after.
func place(to io.Writer, after string, vars map[string]string, used map[string]bool) (rest string, err error) {
	if tail, ok := strings.CutPrefix(after, `"{{"}}`); ok {
		_, err := io.WriteString(to, "{{")
		return tail, err
	}
	inside, tail, ok := strings.Cut(after, "}}")
	name, filter, _ := strings.Cut(inside, "|")
	name, filter = strings.TrimSpace(name), strings.TrimSpace(filter)
	if !ok || strings.ContainsAny(inside, "{}\n") {
		return "", errors.New(`{{ has no }} behind its name; write {{"{{"}} for two braces`)
	}
	value, ok := vars[name]
	if !ok {
		return "", fmt.Errorf("there is no value for {{%s}}; there are %s", name, list(vars))
	}
	used[name] = true
	write, known := filters[filter]
	if !known {
		return "", fmt.Errorf("there is no filter %s; there are json, raw, shell, xml, yaml", filter)
	}
	if err := write(to, value); err != nil {
		return "", fmt.Errorf("{{%s}}: %w", name, err)
	}
	return tail, nil
}

// expanded is what a template has become so far.
type expanded struct{ text []byte }

// Write implements io.Writer, within what a file may become.
func (e *expanded) Write(p []byte) (int, error) {
	if len(e.text)+len(p) > edit.MaxEdit {
		return 0, edit.ErrTooLarge
	}
	e.text = append(e.text, p...)
	return len(p), nil
}

// filters write a value so that it stays one thing where it comes to stand.
var filters = map[string]func(to io.Writer, value string) error{
	"":    oneLine,
	"raw": raw,
	"shell": func(to io.Writer, value string) error {
		if err := noNUL(value); err != nil {
			return err
		}
		return between("'", to, value, func(s string) []byte { return []byte(strings.ReplaceAll(s, "'", `'\''`)) })
	},
	"json": quoted,
	"yaml": quoted, // a double-quoted scalar of YAML is a string of JSON
	"xml": func(to io.Writer, value string) error {
		if strings.ContainsFunc(value, notInXML) || !utf8.ValidString(value) {
			return errors.New("the value has a character that no XML has, or is not UTF-8")
		}
		return inPieces(to, value, func(s string) []byte {
			var b bytes.Buffer
			_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
			return escapeControl(b.Bytes(), "&#x%X;")
		})
	},
}

// pieceSize is how much of a value is escaped at a time, in bytes: it may become six times as long.
const pieceSize = 64 << 10

// inPieces writes what escape makes of a value, piece by piece of whole characters.
func inPieces(to io.Writer, value string, escape func(string) []byte) error {
	for len(value) > 0 {
		n := min(len(value), pieceSize)
		for n < len(value) && n > pieceSize-utf8.UTFMax && !utf8.RuneStart(value[n]) {
			n--
		}
		if _, err := to.Write(escape(value[:n])); err != nil {
			return err
		}
		value = value[n:]
	}
	return nil
}

// between is inPieces with a mark before and after the whole.
func between(mark string, to io.Writer, value string, escape func(string) []byte) error {
	if _, err := io.WriteString(to, mark); err != nil {
		return err
	}
	if err := inPieces(to, value, escape); err != nil {
		return err
	}
	_, err := io.WriteString(to, mark)
	return err
}

func raw(to io.Writer, value string) error {
	return inPieces(to, value, func(s string) []byte { return []byte(s) })
}

// notInXML reports whether a character cannot stand in a document, not even escaped.
func notInXML(c rune) bool {
	return c < ' ' && c != '\t' && c != '\n' && c != '\r' || c == 0xfffe || c == 0xffff
}

// endsLine reports whether a character is a control character or the end of a line to some reader: of U+0085 one of YAML 1.1,
// of U+2028 one of JavaScript.
func endsLine(c rune) bool {
	return c < ' ' && c != '\t' || c >= 0x7f && c < 0xa0 || c == '\u2028' || c == '\u2029'
}

// escapeControl writes the characters of a text that are not printable to all readers, and not escaped yet, by a format of
// their number: DEL, the C1 controls such as NEL, the ends of lines and paragraphs, and the byte order mark.
func escapeControl(s []byte, format string) []byte {
	special := func(c rune) bool {
		return c >= 0x7f && c < 0xa0 || c == '\u2028' || c == '\u2029' || c == '\ufeff' || c == 0xfffe || c == 0xffff
	}
	if !bytes.ContainsFunc(s, special) {
		return s
	}
	var b bytes.Buffer
	for _, c := range string(s) {
		if special(c) {
			fmt.Fprintf(&b, format, c)
		} else {
			b.WriteRune(c)
		}
	}
	return b.Bytes()
}

// oneLine keeps a value from becoming a line of its own in a file of configuration.
func oneLine(to io.Writer, value string) error {
	if strings.ContainsFunc(value, endsLine) {
		return errors.New("the value has more than one line or a control character; {{name|raw}} writes it as it is")
	}
	return raw(to, value)
}

func noNUL(value string) error {
	if strings.Contains(value, "\x00") {
		return errors.New("the value has a NUL byte, which no shell takes")
	}
	return nil
}

func quoted(to io.Writer, value string) error {
	if !utf8.ValidString(value) {
		return errors.New("the value is not UTF-8")
	}
	return between(`"`, to, value, func(s string) []byte {
		var b bytes.Buffer
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(false)
		_ = encoder.Encode(s) // a text can be encoded
		inside := bytes.TrimSuffix(bytes.TrimPrefix(bytes.TrimSuffix(b.Bytes(), []byte("\n")), []byte(`"`)), []byte(`"`))
		return escapeControl(inside, `\u%04x`)
	})
}

func list(vars map[string]string) string {
	if len(vars) == 0 {
		return "none"
	}
	return strings.Join(sorted(vars), ", ")
}

func sorted(vars map[string]string) []string {
	var names []string
	for name := range vars {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
