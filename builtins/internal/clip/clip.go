// Package clip reads, sets and watches the clipboard of a desktop.
//
//	Open ─► Backend: X11 by selections, Wayland by data-control ─► Get, Set, Watch
//	                  │
//	                  └─ Content: text, HTML, PNG, URI lists; all in the form that hosts are sent
//
// The content of others is not trusted: its size is bounded, text must be UTF-8, and of an image the header and the size are
// checked before memory is made for it.
//
// Not here: who may read or set it, and how it comes to a host.
package clip

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Kind is a form in which content is offered.
type Kind string

// The kinds of content.
const (
	Text  Kind = "text"  // UTF-8
	HTML  Kind = "html"  // UTF-8
	PNG   Kind = "png"   // an image; a BMP is made one
	Files Kind = "files" // a list of URIs as of RFC 2483: a line each, CRLF at the end
)

// Kinds are all of them, the most plain one first.
func Kinds() []Kind { return []Kind{Text, HTML, PNG, Files} }

// Content is content in one form.
type Content struct {
	Kind Kind
	Data []byte
}

const (
	// MaxContent is the most bytes of content: what a message to a host takes, 16 MiB, less what stands around it.
	MaxContent = 15 << 20
	// Silence is how long an owner of the clipboard, or a display server, may say nothing before it is not waited for any more.
	Silence = 2 * time.Second
)

// Backend is the clipboard of one display. It is safe for concurrent use.
type Backend interface {
	// Offered returns in which kinds there is content; none: the clipboard is empty. Names are the types as the display has
	// them.
	Offered(ctx context.Context, primary bool) (kinds []Kind, names []string, err error)
	// Read returns the content in one kind, of at most limit bytes; names are those that Offered returned. An error of cause
	// fs.ErrNotExist: it is not offered so.
	Read(ctx context.Context, primary bool, kind Kind, names []string, limit int) ([]byte, error)
	// Write makes the content, in as many kinds as there are, that of the clipboard. It is kept until somebody else sets it, or
	// the backend is closed.
	Write(ctx context.Context, primary bool, contents []Content) error
	// Watch has a function called after each change of the clipboard that was not made by Write. It must not wait. It is called
	// at most once; the end of the display ends it.
	Watch(changed func()) error
	// Done is closed when the display has ended.
	Done() <-chan struct{}
	// Close gives the clipboard up.
	Close() error
}

// errTooLarge is the error about content of more than limit bytes.
func errTooLarge(limit int) error {
	return fault.Wrapf(fault.ErrTooLarge, "the content of the clipboard is larger than %d bytes", limit)
}

// Get reads the clipboard in the first of the kinds in which there is content. An error of cause fs.ErrNotExist says that there
// is none, or only in other kinds, which it names.
func Get(ctx context.Context, b Backend, primary bool, want []Kind, limit int) (Content, []Kind, error) {
	for again := true; ; again = false {
		offered, names, err := b.Offered(ctx, primary)
		if err != nil {
			return Content{}, nil, err
		}
		at := slices.IndexFunc(want, func(k Kind) bool { return slices.Contains(offered, k) })
		if at < 0 {
			return Content{}, offered, missing(want, offered, names)
		}
		data, err := b.Read(ctx, primary, want[at], names, limit)
		if errors.Is(err, fs.ErrNotExist) && again {
			continue // somebody else has set it since
		}
		return Content{want[at], data}, offered, err
	}
}

// missing says what there is instead.
func missing(want, offered []Kind, names []string) error {
	switch {
	case len(names) == 0:
		return fault.Wrapf(fs.ErrNotExist, "the clipboard is empty")
	case len(offered) == 0:
		return fault.Wrapf(fs.ErrNotExist, "the clipboard has no %s, but %.300s", join(want), strings.Join(names, ", "))
	}
	return fault.Wrapf(fs.ErrNotExist, "the clipboard has no %s, but %s", join(want), join(offered))
}

func join(kinds []Kind) string {
	words := make([]string, len(kinds))
	for i, k := range kinds {
		words[i] = string(k)
	}
	return strings.Join(words, ", ")
}

// Set makes contents those of the clipboard, once they have been checked. HTML alone is offered as text as well, without its
// tags.
func Set(ctx context.Context, b Backend, primary bool, contents []Content) error {
	contents, err := Prepare(contents)
	if err != nil {
		return err
	}
	return b.Write(ctx, primary, contents)
}

// Prepare checks contents and returns them as they are offered: a BMP as PNG, and HTML with text beside it.
func Prepare(contents []Content) ([]Content, error) {
	if len(contents) == 0 {
		return nil, fault.Invalid("there is nothing to set the clipboard to")
	}
	var all []Content
	total := 0
	for _, c := range contents {
		if total += len(c.Data); total > MaxContent {
			return nil, errTooLarge(MaxContent)
		}
		data, err := check(c)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(all, func(other Content) bool { return other.Kind == c.Kind }) {
			return nil, fault.Invalid("there are two contents of kind %s", c.Kind)
		}
		all = append(all, Content{c.Kind, data})
	}
	html := slices.IndexFunc(all, func(c Content) bool { return c.Kind == HTML })
	if html >= 0 && !slices.ContainsFunc(all, func(c Content) bool { return c.Kind == Text }) {
		all = append(all, Content{Text, textOf(all[html].Data)})
	}
	return all, nil
}

// Check returns why content cannot be set, as far as that shows without decoding an image.
func Check(c Content) error {
	switch {
	case len(c.Data) > MaxContent:
		return errTooLarge(MaxContent)
	case c.Kind == PNG:
		return checkImage(c.Data)
	}
	_, err := check(c)
	return err
}

// CheckText returns why data is no text.
func CheckText(data []byte) error {
	if !utf8.Valid(data) {
		return fault.Invalid("the text is not UTF-8")
	}
	return nil
}

// check returns the content of a host as it is offered.
func check(c Content) ([]byte, error) {
	switch c.Kind {
	case Text, HTML:
		if !utf8.Valid(c.Data) {
			return nil, fault.Invalid("the %s is not UTF-8", c.Kind)
		}
		return c.Data, nil
	case Files:
		return URIList(c.Data)
	case PNG:
		return ToPNG(c.Data)
	}
	return nil, fault.Unsupported("content of kind %q; supported: %s", c.Kind, join(Kinds()))
}

// URIList checks a list of URIs and returns it with the ends of lines that it must have.
func URIList(data []byte) ([]byte, error) {
	if !utf8.Valid(data) {
		return nil, fault.Invalid("the list of files is not UTF-8")
	}
	var list []byte
	uris := 0
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			continue
		}
		scheme, _, ok := strings.Cut(line, ":")
		if !strings.HasPrefix(line, "#") {
			if !ok || scheme == "" || strings.ContainsFunc(scheme, notOfScheme) || strings.ContainsFunc(line, isControl) {
				return nil, fault.Invalid("%.100q is no URI, such as file:///tmp/a", line)
			}
			uris++
		}
		list = append(append(list, line...), "\r\n"...)
	}
	if uris == 0 {
		return nil, fault.Invalid("the list of files has no URI")
	}
	return list, nil
}

func notOfScheme(c rune) bool {
	return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("+-.", c))
}

func isControl(c rune) bool { return c < ' ' || c == 0x7f }
