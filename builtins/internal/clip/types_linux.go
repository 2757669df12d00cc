package clip

import (
	"bytes"
	"context"
	"io/fs"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// maxTypes bounds the types of an offer that are read.
const maxTypes = 200

func errSilent() error {
	return fault.Wrapf(context.DeadlineExceeded, "the program that owns the clipboard does not answer (waited for %v)", Silence)
}

func errNotOffered(kind Kind) error {
	return fault.Wrapf(fs.ErrNotExist, "the clipboard has no %s", kind)
}

// Types of content on X11 and Wayland, those that are liked best first. Capital names are X11's (ICCCM 2.6.2).
var types = map[Kind][]string{
	Text:  {"text/plain;charset=utf-8", "UTF8_STRING", "text/plain;charset=UTF-8", "text/plain", "STRING", "TEXT"},
	HTML:  {"text/html", "text/html;charset=utf-8"},
	PNG:   {"image/png", "image/bmp", "image/x-bmp", "image/x-MS-bmp"},
	Files: {"text/uri-list"},
}

// gnomeFiles is how file managers offer files: what to do with them, then their URIs, a line each.
const gnomeFiles = "x-special/gnome-copied-files"

// kindsOf returns in which kinds content of these types can be read.
func kindsOf(names []string) (kinds []Kind) {
	for _, kind := range Kinds() {
		if typeOf(kind, names) != "" {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// typeOf returns the type by which content of a kind is read; empty: there is none.
func typeOf(kind Kind, names []string) string {
	for _, name := range types[kind] {
		if slices.Contains(names, name) {
			return name
		}
	}
	return ""
}

// decode returns content of others as it is sent to hosts.
func decode(kind Kind, name string, data []byte) ([]byte, error) {
	switch kind {
	case Text, HTML:
		return decodeText(kind, data, name == "STRING" || name == "TEXT")
	case PNG:
		return ToPNG(data)
	}
	return decodeText(kind, data, false)
}

// encoding is content in one type. make returns the bytes when somebody asks for them; nil: there are none.
type encoding struct {
	name, as string // the type, and what X11 calls the bytes
	make     func() []byte
}

// encodings returns the types in which contents are offered.
func encodings(contents []Content) (list []encoding) {
	add := func(name, as string, data []byte) {
		list = append(list, encoding{name, as, func() []byte { return data }})
	}
	for _, c := range contents {
		switch c.Kind {
		case Text:
			for _, name := range []string{"text/plain;charset=utf-8", "text/plain"} {
				add(name, name, c.Data)
			}
			add("UTF8_STRING", "UTF8_STRING", c.Data)
			add("TEXT", "UTF8_STRING", c.Data)
			if latin1, ok := encodeLatin1(c.Data); ok {
				add("STRING", "STRING", latin1)
			}
		case HTML:
			add("text/html", "text/html", c.Data)
		case PNG:
			add("image/png", "image/png", c.Data)
			list = append(list, encoding{"image/bmp", "image/bmp", func() []byte {
				converted, err := bmpOfPNG(c.Data)
				if err != nil {
					return nil
				}
				return converted
			}})
		case Files:
			add("text/uri-list", "text/uri-list", c.Data)
			copied := "copy\n" + strings.ReplaceAll(string(bytes.TrimSuffix(c.Data, []byte("\r\n"))), "\r\n", "\n")
			add(gnomeFiles, gnomeFiles, []byte(copied))
		}
	}
	return list
}
