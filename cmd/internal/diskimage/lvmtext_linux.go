package diskimage

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// section is a part of the metadata of LVM: names with values, which are an int64, a string, a list, or a section.
type section map[string]any

func (s section) sub(name string) section    { v, _ := s[name].(section); return v }
func (s section) text(name string) string    { v, _ := s[name].(string); return v }
func (s section) number(name string) int64   { v, _ := s[name].(int64); return v }
func (s section) list(name string) []any     { v, _ := s[name].([]any); return v }
func (s section) has(name, word string) bool { return slices.Contains(s.list(name), any(word)) }

var errMetadata = errors.New("its metadata cannot be read")

// parseGroup reads the text of a volume group, and returns its name as well.
func parseGroup(text string) (name string, group section, err error) {
	p := metadataParser{text: text, left: maxElements}
	top, err := p.section(0)
	if err != nil || p.rest() {
		return "", nil, errMetadata
	}
	for key, value := range top {
		if s, is := value.(section); is && s.text("id") != "" {
			if group != nil {
				return "", nil, errMetadata
			}
			name, group = key, s
		}
	}
	if group == nil {
		return "", nil, errMetadata
	}
	return name, group, nil
}

// metadataParser reads the configuration language of LVM, as far as its metadata uses it.
type metadataParser struct {
	text string
	left int // elements that it may still have
}

const (
	maxDepth    = 8       // bounds the sections within sections
	maxElements = 100_000 // bounds the names and values: a volume has some thirty
)

// element counts one, and reports whether it may be read.
func (p *metadataParser) element() bool {
	p.left--
	return p.left >= 0
}

// rest skips blanks and comments, and reports whether anything is left.
func (p *metadataParser) rest() bool {
	for {
		p.text = strings.TrimLeft(p.text, " \t\r\n")
		if !strings.HasPrefix(p.text, "#") {
			return p.text != ""
		}
		_, p.text, _ = strings.Cut(p.text, "\n")
	}
}

// take skips a character, and reports whether it stood there.
func (p *metadataParser) take(c byte) bool {
	if !p.rest() || p.text[0] != c {
		return false
	}
	p.text = p.text[1:]
	return true
}

// word takes what may be a name or a number.
func (p *metadataParser) word() string {
	p.rest()
	n := strings.IndexFunc(p.text, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("_-+.", c))
	})
	if n < 0 {
		n = len(p.text)
	}
	word := p.text[:n]
	p.text = p.text[n:]
	return word
}

// section reads up to the brace that ends a section, or to the end of the text.
func (p *metadataParser) section(depth int) (section, error) {
	s := section{}
	for {
		if depth > 0 && p.take('}') {
			return s, nil
		}
		if !p.rest() {
			if depth > 0 {
				return nil, errMetadata
			}
			return s, nil
		}
		name := p.word()
		if _, twice := s[name]; name == "" || twice || depth > maxDepth || !p.element() {
			return nil, errMetadata
		}
		var err error
		switch {
		case p.take('{'):
			s[name], err = p.section(depth + 1)
		case p.take('='):
			s[name], err = p.value()
		default:
			err = errMetadata
		}
		if err != nil {
			return nil, err
		}
	}
}

// value reads a number, a string or a list of these.
func (p *metadataParser) value() (any, error) {
	if !p.take('[') {
		return p.scalar()
	}
	list := []any{}
	for !p.take(']') {
		if len(list) > 0 && !p.take(',') || !p.element() {
			return nil, errMetadata
		}
		v, err := p.scalar()
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

func (p *metadataParser) scalar() (any, error) {
	if !p.take('"') {
		word := p.word()
		if n, err := strconv.ParseInt(word, 10, 64); err == nil {
			return n, nil
		}
		if _, err := strconv.ParseFloat(word, 64); err != nil {
			return nil, errMetadata
		}
		return word, nil // a number with a point, of which none is looked at
	}
	var b strings.Builder
	for n := 0; n < len(p.text); n++ {
		switch c := p.text[n]; {
		case c == '"':
			p.text = p.text[n+1:]
			return b.String(), nil
		case c == '\\' && n+1 < len(p.text):
			n++
			b.WriteByte(p.text[n])
		default:
			b.WriteByte(c)
		}
	}
	return nil, errMetadata
}
