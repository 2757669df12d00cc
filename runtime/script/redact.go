package script

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"hash/maphash"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// redactor takes secrets out of what people see, as they are and as base64, hexadecimal digits, URL, JSON or UTF-16.
//
// A text may hold a part of a secret alone: output is cut, and base64 is broken into lines. So what is looked for are pieces
// of a few characters, in the text without its white space; all that belongs to one is hidden. A form of a secret that is
// shorter than a piece is looked for as a whole.
type redactor struct {
	seed   maphash.Seed
	pieces map[uint64]bool // hashes
	wide   int             // how far beside a piece more of its secret may be that is not looked for
	short  *strings.Replacer

	hasShort bool
}

const (
	hidden = "[secret]"
	// pieceLength is how many bytes of a secret in a row are hidden by themselves: fewer are everywhere.
	pieceLength = 8
	// mostPieces bounds the pieces of one form of a secret: of a longer form each so manieth is looked for.
	mostPieces = 4096
)

// newRedactor knows the values of a request's secrets. An empty one hides nothing.
func newRedactor(secrets map[string]string) *redactor {
	r := &redactor{seed: maphash.MakeSeed(), pieces: map[uint64]bool{}}
	var short []string
	for _, value := range secrets {
		for _, form := range formsOf(value) {
			if !r.add(form) {
				short = append(short, form)
			}
		}
	}
	sort.Slice(short, func(i, j int) bool { return len(short[i]) > len(short[j]) })
	var pairs []string
	for _, form := range short {
		pairs = append(pairs, form, hidden)
	}
	r.hasShort = len(pairs) > 0
	r.short = strings.NewReplacer(pairs...)
	return r
}

// add looks for the pieces of a form; false: it has none, since it is too short.
func (r *redactor) add(form string) bool {
	text, _ := squeeze(form)
	last := len(text) - pieceLength
	if last < 0 {
		return form == ""
	}
	step := 1 + last/mostPieces
	for at := 0; at <= last; at += step {
		r.pieces[maphash.Bytes(r.seed, text[at:at+pieceLength])] = true
	}
	r.wide = max(r.wide, step-1)
	return true
}

// formsOf returns the ways in which a value may be written.
func formsOf(value string) []string {
	if value == "" {
		return nil
	}
	var plain strings.Builder
	encoder := json.NewEncoder(&plain) // as scripts encode, without escapes for HTML
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(value) // a string can always be encoded
	quoted, _ := json.Marshal(value)
	digits := hex.EncodeToString([]byte(value))
	list := []string{
		value, text.EscapePath(value), url.QueryEscape(value), url.PathEscape(value), inQuotes(string(quoted)),
		inQuotes(strings.TrimSuffix(plain.String(), "\n")),
		inQuotes(strconv.Quote(value)), strings.ReplaceAll(value, "'", `'\''`), luaQuoted.Replace(value), digits, strings.ToUpper(digits),
	}
	list = append(list, base64Of(base64.RawStdEncoding, value)...)
	list = append(list, base64Of(base64.RawURLEncoding, value)...)
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} { // as programs of Windows write
		wide := wideOf(order, value)
		digits := hex.EncodeToString([]byte(wide))
		list = append(list, wide, digits, strings.ToUpper(digits))
		if valid := text.ToValidUTF8(wide); valid != wide { // as output is shown
			list = append(list, valid)
		}
	}
	return append(list, base64Of(base64.RawStdEncoding, wideOf(binary.LittleEndian, value))...) // as PowerShell takes commands
}

// base64Of returns how a value looks in base64: alone, and as a part of a longer text at each alignment, there what does not
// depend on its neighbours.
func base64Of(encoding *base64.Encoding, value string) []string {
	list := []string{encoding.EncodeToString([]byte(value))}
	for shift := range 3 {
		whole := encoding.EncodeToString(append(make([]byte, shift), value...))
		if begin, end := (shift*8+5)/6, (shift+len(value))*8/6; end-begin >= pieceLength {
			list = append(list, whole[begin:end])
		}
	}
	return list
}

// wideOf returns a value as UTF-16.
func wideOf(order binary.AppendByteOrder, value string) string {
	var b []byte
	for _, unit := range utf16.Encode([]rune(value)) {
		b = order.AppendUint16(b, unit)
	}
	return string(b)
}

// luaQuoted is what string.format("%q") does.
var luaQuoted = strings.NewReplacer(`"`, `\"`, "\n", "\\\n", `\`, `\\`, "\r", `\r`, "\x00", `\000`)

func inQuotes(s string) string { return strings.TrimSuffix(strings.TrimPrefix(s, `"`), `"`) }

// squeeze returns a text without its white space, and without the sign that a diff puts before each line; and where in the
// text each byte was.
func squeeze(s string) (text []byte, at []int) {
	newLine := true
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '\n':
			newLine = true
			continue
		case c == ' ' || c == '\t' || c == '\r':
			continue
		case newLine && (c == '+' || c == '-'):
			newLine = false
			continue
		}
		newLine = false
		text, at = append(text, c), append(at, i)
	}
	return text, at
}

// text returns a text without secrets.
func (r *redactor) text(s string) string {
	if len(r.pieces) > 0 && len(s) >= pieceLength {
		s = r.withoutPieces(s)
	}
	return r.short.Replace(s)
}

// function returns text; nil where there is nothing to hide.
func (r *redactor) function() func(string) string {
	if len(r.pieces) == 0 && !r.hasShort {
		return nil
	}
	return r.text
}

// withoutPieces hides whatever belongs to a piece of a secret.
func (r *redactor) withoutPieces(s string) string {
	text, at := squeeze(s)
	var out strings.Builder
	shown, from, to := 0, -1, -1 // of s, up to here; of text, what is to be hidden next
	flush := func() {
		if from < 0 {
			return
		}
		begin, end := at[from], at[to-1]+1
		for begin > shown && !utf8.RuneStart(s[begin]) { // a rune that is hidden in part is hidden whole
			begin--
		}
		for end < len(s) && !utf8.RuneStart(s[end]) {
			end++
		}
		out.WriteString(s[shown:begin])
		out.WriteString(hidden)
		shown = end
	}
	for i := 0; i+pieceLength <= len(text); i++ {
		if !r.pieces[maphash.Bytes(r.seed, text[i:i+pieceLength])] {
			continue
		}
		first, last := max(0, i-r.wide), min(len(text), i+pieceLength+r.wide)
		if from < 0 || first > to {
			flush()
			from = first
		}
		to = last
	}
	flush()
	if shown == 0 {
		return s
	}
	out.WriteString(s[shown:])
	return out.String()
}

// reply hides secrets in every text of a reply but its result, which the script chose.
func (r *redactor) reply(reply *pb.RunScriptResponse) {
	result := reply.Result
	reply.Result = nil
	r.message(reply.ProtoReflect())
	reply.Result = result
}

// agents are the fields that the agent fills in by itself.
var agents = map[protoreflect.Name]bool{"transaction_id": true, "sha256": true, "kind": true, "level": true}

func (r *redactor) message(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case agents[field.Name()]:
		case field.IsMap():
		case field.IsList() && field.Kind() == protoreflect.MessageKind:
			for i := range value.List().Len() {
				r.message(value.List().Get(i).Message())
			}
		case field.Kind() == protoreflect.MessageKind:
			r.message(value.Message())
		case field.Kind() == protoreflect.StringKind && !field.IsList():
			m.Set(field, protoreflect.ValueOfString(r.text(value.String())))
		}
		return true
	})
}
