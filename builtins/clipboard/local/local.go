// Package local is the clipboard of the desktop that this process itself is in, for a program of the host that joins it with
// that of a guest.
//
// Not here: the clipboard of a guest, which the room has.
package local

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins/internal/clip"
)

// Kind is a form in which content is offered: text, html, png or files.
type Kind = clip.Kind

// The kinds of content.
const (
	Text  = clip.Text
	HTML  = clip.HTML
	PNG   = clip.PNG
	Files = clip.Files
)

// Content is content in one form.
type Content = clip.Content

// MaxContent is the most bytes of content.
const MaxContent = clip.MaxContent

// Clipboard is an open clipboard. It is safe for concurrent use.
type Clipboard struct{ backend clip.Backend }

// Open opens the clipboard of the display that an environment names, Wayland before X11. Where there is none, or the compositor
// gives no program access to it, the error is of cause errors.ErrUnsupported.
func Open(ctx context.Context, getenv func(string) string) (*Clipboard, error) {
	backend, err := clip.Open(ctx, getenv)
	if err != nil {
		return nil, err
	}
	return &Clipboard{backend}, nil
}

// Get returns the content in the first of some kinds, and the kinds in which there is content. An error of cause fs.ErrNotExist
// says that there is none.
func (c *Clipboard) Get(ctx context.Context, want ...Kind) (Content, []Kind, error) {
	return clip.Get(ctx, c.backend, false, want, MaxContent)
}

// Set makes contents those of the clipboard. They are kept until somebody else sets it, or Close.
func (c *Clipboard) Set(ctx context.Context, contents ...Content) error {
	return clip.Set(ctx, c.backend, false, contents)
}

// Watch has a function called after each change that was not made by Set; it must not wait. It is called once at most.
func (c *Clipboard) Watch(changed func()) error { return c.backend.Watch(changed) }

// Done is closed when the display has ended.
func (c *Clipboard) Done() <-chan struct{} { return c.backend.Done() }

// Close gives the clipboard up.
func (c *Clipboard) Close() error { return c.backend.Close() }
