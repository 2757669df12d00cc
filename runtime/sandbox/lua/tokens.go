package lua

import (
	"bytes"

	"github.com/yuin/gopher-lua/ast"
	"github.com/yuin/gopher-lua/parse"
)

// tokens are the words of a source, line by line: the syntax tree knows lines alone, and who looks for a fault wants to
// know where on the line it is.
type tokens struct {
	lines map[int][]ast.Token
	met   map[spot]int // how often a place was asked for
}

// spot is a text on a line, as one kind of question asks for it.
type spot struct {
	kind, text string
	line       int
}

// scan splits a source that parses.
func scan(source []byte, name string) *tokens {
	t := &tokens{lines: map[int][]ast.Token{}, met: map[spot]int{}}
	scanner, lexer := parse.NewScanner(bytes.NewReader(source), name), &parse.Lexer{}
	for {
		token, err := scanner.Scan(lexer)
		if err != nil || token.Type == parse.EOF {
			return t
		}
		lexer.PrevTokenType = token.Type
		t.lines[token.Pos.Line] = append(t.lines[token.Pos.Line], token)
	}
}

// column is where words follow one another on a line, counted from 1; 0 where they do not. Asked again for the same, of one
// kind, it gives the next place on the line.
func (t *tokens) column(kind string, line int, words ...string) int {
	all := ""
	for _, w := range words {
		all += w + " "
	}
	at := spot{kind, all, line}
	skip, found := t.met[at], 0
	t.met[at]++
	for i := range t.lines[line] {
		if !follow(t.lines[line][i:], words) {
			continue
		}
		found = t.lines[line][i].Pos.Column
		if skip--; skip < 0 {
			break
		}
	}
	return found
}

func follow(list []ast.Token, words []string) bool {
	if len(list) < len(words) {
		return false
	}
	for i, w := range words {
		if list[i].Str != w && (w != "." || list[i].Type != '.') {
			return false
		}
	}
	return true
}
