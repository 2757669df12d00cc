package script

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"sort"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// redactor takes secrets out of what people see, as they are and as base64, URL or JSON.
type redactor struct{ replace *strings.Replacer }

const hidden = "[secret]"

// shortest is how long a line of a secret must be to be hidden by itself: shorter ones are everywhere.
const shortest = 6

// newRedactor knows the values of a request's secrets. An empty one hides nothing.
func newRedactor(secrets map[string]string) *redactor {
	forms := map[string]bool{}
	for _, value := range secrets {
		addForms(forms, value)
		for line := range strings.Lines(value) { // a diff shows lines, each behind a sign
			if line = strings.TrimRight(line, "\r\n"); len(line) >= shortest {
				addForms(forms, line)
			}
		}
	}
	var longest []string
	for form := range forms {
		longest = append(longest, form)
	}
	sort.Slice(longest, func(i, j int) bool { return len(longest[i]) > len(longest[j]) })
	var pairs []string
	for _, form := range longest {
		pairs = append(pairs, form, hidden)
	}
	return &redactor{strings.NewReplacer(pairs...)}
}

// addForms adds the ways in which a value may be written.
func addForms(forms map[string]bool, value string) {
	if value == "" {
		return
	}
	var plain strings.Builder
	encoder := json.NewEncoder(&plain) // as scripts encode, without escapes for HTML
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(value) // a string can always be encoded
	quoted, _ := json.Marshal(value)
	list := []string{
		value, url.QueryEscape(value), url.PathEscape(value), inQuotes(string(quoted)), inQuotes(strings.TrimSuffix(plain.String(), "\n")),
		inQuotes(strconv.Quote(value)), strings.ReplaceAll(value, "'", `'\''`), luaQuoted.Replace(value),
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding} {
		list = append(list, encoding.EncodeToString([]byte(value)))
	}
	if len(value) >= shortest { // as a part of a longer text in base64, at each alignment: what does not depend on its neighbours
		for shift := range 3 {
			for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				whole := encoding.EncodeToString(append(make([]byte, shift), value...))
				list = append(list, whole[(shift*8+5)/6:(shift+len(value))*8/6])
			}
		}
	}
	for _, form := range list {
		if form != "" {
			forms[form] = true
		}
	}
}

// luaQuoted is what string.format("%q") does.
var luaQuoted = strings.NewReplacer(`"`, `\"`, "\n", "\\\n", `\`, `\\`, "\r", `\r`, "\x00", `\000`)

func inQuotes(s string) string { return strings.TrimSuffix(strings.TrimPrefix(s, `"`), `"`) }

func (r *redactor) text(s string) string { return r.replace.Replace(s) }

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
