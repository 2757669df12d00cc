package clip

import (
	"context"
	"io/fs"
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins/internal/winuser"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Open opens the clipboard of the session of this process.
func Open(context.Context, func(string) string) (Backend, error) {
	c, err := winuser.OpenClipboard()
	if err != nil {
		return nil, err
	}
	return &windows{c}, nil
}

// windows is the clipboard of a session of Windows, which has no other one for what is selected.
type windows struct{ *winuser.Clipboard }

func errPrimary() error { return fault.Unsupported("Windows has no clipboard of what is selected") }

// Offered implements Backend. Lists of files are not read: they are names of another kind.
func (w *windows) Offered(_ context.Context, primary bool) (kinds []Kind, names []string, err error) {
	if primary {
		return nil, nil, errPrimary()
	}
	forms, names, err := w.Forms()
	for _, kind := range []Kind{Text, HTML, PNG} {
		if slices.Contains(forms, string(kind)) {
			kinds = append(kinds, kind)
		}
	}
	return kinds, names, err
}

// Read implements Backend.
func (w *windows) Read(_ context.Context, primary bool, kind Kind, _ []string, limit int) ([]byte, error) {
	if primary {
		return nil, errPrimary()
	}
	switch kind {
	case Text:
		text, err := w.Text(limit)
		return []byte(text), err
	case HTML:
		text, err := w.HTML(limit)
		return []byte(text), err
	case PNG:
		data, err := w.PNG(limit)
		if err == nil {
			err = CheckPNG(data)
		}
		return data, err
	}
	return nil, fault.Wrapf(fs.ErrNotExist, "the clipboard has no %s", kind)
}

// Write implements Backend.
func (w *windows) Write(_ context.Context, primary bool, contents []Content) error {
	if primary {
		return errPrimary()
	}
	var all winuser.Contents
	for _, c := range contents {
		switch c.Kind {
		case Text:
			all.Text = string(c.Data)
		case HTML:
			all.HTML = string(c.Data)
		case PNG:
			all.PNG = c.Data
		default:
			return fault.Unsupported("content of kind %q on Windows", c.Kind)
		}
	}
	return w.Clipboard.Write(all)
}
