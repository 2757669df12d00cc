package lua

import (
	"bytes"

	"github.com/yuin/gopher-lua/ast"
	"github.com/yuin/gopher-lua/parse"
)

// tokens are the words of a source, to find out where on a line something stands: the syntax tree knows lines alone.
type tokens struct {
	list []ast.Token
	// places are where in list a word stands on a line.
	places map[word][]int
	// met is how many of the places were given away already, for each kind of question.
	met map[question]int
}

type word struct {
	line int
	text string
}

type question struct {
	kind, all string
	line      int
}

// scan splits a source that parses.
func scan(source []byte, name string) *tokens {
	t := &tokens{places: map[word][]int{}, met: map[question]int{}}
	scanner, lexer := parse.NewScanner(bytes.NewReader(source), name), &parse.Lexer{}
	for {
		token, err := scanner.Scan(lexer)
		if err != nil || token.Type == parse.EOF {
			return t
		}
		lexer.PrevTokenType = token.Type
		at := word{token.Pos.Line, token.Str}
		t.places[at] = append(t.places[at], len(t.list))
		t.list = append(t.list, token)
	}
}

// column is where words follow one another on a line, counted from 1; 0 where they do not. Asked again for the same, of one
// kind, it gives the next place on the line, and in the end the last.
func (t *tokens) column(kind string, line int, words ...string) int {
	q := question{kind: kind, line: line}
	for _, w := range words {
		q.all += w + " "
	}
	places := t.places[word{line, words[0]}]
	for i := t.met[q]; i < len(places); i++ {
		if t.follow(places[i], words) {
			t.met[q] = i + 1
			return t.list[places[i]].Pos.Column
		}
	}
	for i := len(places) - 1; i >= 0; i-- {
		if t.follow(places[i], words) {
			return t.list[places[i]].Pos.Column
		}
	}
	return 0
}

// follow says whether words stand one behind the other from a place on.
func (t *tokens) follow(from int, words []string) bool {
	if len(t.list)-from < len(words) {
		return false
	}
	for i, w := range words {
		if token := t.list[from+i]; token.Str != w && (w != "." || token.Type != '.') {
			return false
		}
	}
	return true
}
