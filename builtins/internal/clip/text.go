package clip

import (
	"html"
	"strings"
)

// textOf returns what is left of HTML without its tags, for programs that paste plain text.
func textOf(source []byte) []byte {
	var b strings.Builder
	rest := string(source)
	for {
		text, tag, ok := strings.Cut(rest, "<")
		b.WriteString(strings.Join(strings.FieldsFunc(text, func(c rune) bool { return c == '\n' || c == '\r' || c == '\t' }), " "))
		if !ok {
			break
		}
		if comment, isComment := strings.CutPrefix(tag, "!--"); isComment {
			_, rest, _ = strings.Cut(comment, "-->")
			continue
		}
		var inside string
		inside, rest, _ = strings.Cut(tag, ">")
		name := strings.ToLower(strings.TrimPrefix(inside, "/"))
		if end := strings.IndexAny(name, " \t\r\n/"); end >= 0 {
			name = name[:end]
		}
		closes := strings.HasPrefix(inside, "/")
		switch name {
		case "script", "style", "head", "title":
			if !closes {
				rest = behind(rest, "</"+name)
			}
		case "br":
			b.WriteByte('\n')
		case "p", "div", "tr", "li", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "table", "ul", "ol":
			if closes && b.Len() > 0 {
				b.WriteByte('\n')
			}
		case "td", "th":
			if closes {
				b.WriteByte('\t')
			}
		}
	}
	return []byte(strings.TrimSpace(html.UnescapeString(b.String())))
}

// behind returns what stands behind the tag that begins with a text, in any case; empty: there is none.
func behind(source, tag string) string {
	for at := 0; ; at++ {
		next := strings.IndexByte(source[at:], '<')
		if next < 0 {
			return ""
		}
		at += next
		if len(source)-at >= len(tag) && strings.EqualFold(source[at:at+len(tag)], tag) {
			_, rest, _ := strings.Cut(source[at:], ">")
			return rest
		}
	}
}
