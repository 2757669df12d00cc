package file

import (
	"bytes"
	"context"
	"io"
	"regexp"
	"regexp/syntax"
	"strings"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Bounds of a pattern, so that none costs the agent its memory: what a pattern compiles to grows with its repetitions, not with
// its length alone.
const (
	maxPattern = 4 << 10 // bytes
	maxProgram = 10_000  // instructions
	maxGroups  = 20
)

// checkEvery is how many characters are searched before the context is asked again.
const checkEvery = 128

// pattern is a regular expression that a script wrote. A search for it takes no longer than its context: the regexp package
// reads the text from a reader that ends with the context.
type pattern struct {
	alone *regexp.Regexp // as the script wrote it
	// behind finds the same from the second character of a text on: the first one is what ^ and \b see before the place where
	// a search goes on. Its first group is the whole match.
	behind *regexp.Regexp
}

// compile compiles a pattern; lines: its ^ and $ are those of each line.
func compile(text string, lines bool) (*pattern, error) {
	if len(text) > maxPattern {
		return nil, fault.Wrapf(fault.ErrTooLarge, "the pattern has more than %d bytes", maxPattern)
	}
	flags := syntax.Perl
	if lines {
		flags &^= syntax.OneLine
	}
	tree, err := syntax.Parse(text, flags)
	if err != nil {
		return nil, fault.Invalid("%s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	if programSize(tree) > maxProgram {
		return nil, fault.Wrapf(fault.ErrTooLarge, "the pattern repeats too much")
	}
	if tree.MaxCap() > maxGroups {
		return nil, fault.Wrapf(fault.ErrTooLarge, "the pattern has more than %d groups", maxGroups)
	}
	p := &pattern{}
	written := tree.String()
	if p.alone, err = regexp.Compile(written); err == nil {
		p.behind, err = regexp.Compile(`\A(?s:.)(?s:.*?)(` + written + `)`)
	}
	if err != nil {
		return nil, fault.Invalid("%s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	return p, nil
}

// programSize is about how many instructions an expression compiles to.
func programSize(tree *syntax.Regexp) int {
	size := 2
	if tree.Op == syntax.OpLiteral {
		size += len(tree.Rune)
	}
	for _, sub := range tree.Sub {
		size = min(size+programSize(sub), maxProgram+1)
	}
	if tree.Op == syntax.OpRepeat {
		size *= max(tree.Min+1, tree.Max, 1)
	}
	return min(size, maxProgram+1)
}

// matches reports whether the pattern is found in a text.
func (p *pattern) matches(ctx context.Context, text []byte) (bool, error) {
	reader := &textReader{ctx: ctx, text: text}
	found := p.alone.MatchReader(reader)
	return found, reader.err
}

// find returns where the pattern is first found from an offset on, and its groups; nil if it is not.
func (p *pattern) find(ctx context.Context, text []byte, from int) ([]int, error) {
	if prefix, _ := p.alone.LiteralPrefix(); prefix != "" {
		at := bytes.Index(text[from:], []byte(prefix))
		if at < 0 {
			return nil, context.Cause(ctx)
		}
		from += at
	}
	re, groups := p.alone, 0
	if from > 0 {
		_, width := utf8.DecodeLastRune(text[:from])
		from, re, groups = from-width, p.behind, 2
	}
	reader := &textReader{ctx: ctx, text: text[from:]}
	at := re.FindReaderSubmatchIndex(reader)
	if reader.err != nil || at == nil {
		return nil, reader.err
	}
	at = at[groups:]
	for i := range at {
		if at[i] >= 0 {
			at[i] += from
		}
	}
	return at, nil
}

// textReader reads a text until its context ends.
type textReader struct {
	ctx  context.Context
	text []byte
	n    int
	err  error // why it ended early
}

// ReadRune implements io.RuneReader.
func (r *textReader) ReadRune() (c rune, size int, err error) {
	if r.n++; r.n%checkEvery == 0 {
		if r.err = context.Cause(r.ctx); r.err != nil {
			return 0, 0, r.err
		}
	}
	if len(r.text) == 0 {
		return 0, 0, io.EOF
	}
	c, size = utf8.DecodeRune(r.text)
	r.text = r.text[size:]
	return c, size, nil
}
