package script

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"sort"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// redactor takes secrets out of what people see, as they are and as base64, URL or JSON.
type redactor struct{ replace *strings.Replacer }

const hidden = "[secret]"

// newRedactor knows the values of a request's secrets. An empty one hides nothing.
func newRedactor(secrets map[string]string) *redactor {
	forms := map[string]bool{}
	for _, value := range secrets {
		quoted, _ := json.Marshal(value)
		for _, form := range []string{
			value, url.QueryEscape(value), url.PathEscape(value), strings.Trim(string(quoted), `"`),
			base64.StdEncoding.EncodeToString([]byte(value)), base64.URLEncoding.EncodeToString([]byte(value)),
			base64.RawStdEncoding.EncodeToString([]byte(value)), base64.RawURLEncoding.EncodeToString([]byte(value)),
		} {
			if form != "" {
				forms[form] = true
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

func (r *redactor) text(s string) string { return r.replace.Replace(s) }

// reply hides secrets in all of a reply but its result, which the script chose.
func (r *redactor) reply(reply *pb.RunScriptResponse) {
	for _, list := range [][]*pb.Change{reply.Changes, reply.NotUndone, reply.AfterCommit} {
		for _, c := range list {
			c.Target, c.Diff = r.text(c.Target), r.text(c.Diff)
		}
	}
	for _, line := range reply.Log {
		line.Message = r.text(line.Message)
	}
	if e := reply.Error; e != nil {
		e.Message, e.Object, e.Traceback, e.Hint = r.text(e.Message), r.text(e.Object), r.text(e.Traceback), r.text(e.Hint)
	}
}
