package lua

import (
	"bytes"

	"github.com/yuin/gopher-lua/ast"
	"github.com/yuin/gopher-lua/parse"
)

// columnIndex finds the columns of tokens on a line: the syntax tree has lines only.
type columnIndex struct {
	tokens []ast.Token
	// positions are the indexes into tokens of a text on a line.
	positions map[tokenKey][]int
	// answered is how many of the positions were returned already, for each query.
	answered map[columnQuery]int
}

type tokenKey struct {
	line int
	text string
}

type columnQuery struct {
	kind, all string
	line      int
}

// newColumnIndex scans a source that parses.
func newColumnIndex(source []byte, name string) *columnIndex {
	t := &columnIndex{positions: map[tokenKey][]int{}, answered: map[columnQuery]int{}}
	scanner, lexer := parse.NewScanner(bytes.NewReader(source), name), &parse.Lexer{}
	for {
		token, err := scanner.Scan(lexer)
		if err != nil || token.Type == parse.EOF {
			return t
		}
		lexer.PrevTokenType = token.Type
		at := tokenKey{token.Pos.Line, token.Str}
		t.positions[at] = append(t.positions[at], len(t.tokens))
		t.tokens = append(t.tokens, token)
	}
}

// column returns the column, counted from 1, where the words follow one another on a line; 0 where they do not.
// Repeated queries of the same kind return one occurrence after the other, and then the last one again.
func (t *columnIndex) column(kind string, line int, words ...string) int {
	q := columnQuery{kind: kind, line: line}
	for _, w := range words {
		q.all += w + " "
	}
	found := t.positions[tokenKey{line, words[0]}]
	for i := t.answered[q]; i < len(found); i++ {
		if t.matches(found[i], words) {
			t.answered[q] = i + 1
			return t.tokens[found[i]].Pos.Column
		}
	}
	for i := len(found) - 1; i >= 0; i-- {
		if t.matches(found[i], words) {
			return t.tokens[found[i]].Pos.Column
		}
	}
	return 0
}

// matches reports whether the words are the tokens from an index on.
func (t *columnIndex) matches(from int, words []string) bool {
	if len(t.tokens)-from < len(words) {
		return false
	}
	for i, w := range words {
		if token := t.tokens[from+i]; token.Str != w && (w != "." || token.Type != '.') {
			return false
		}
	}
	return true
}
