package script

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// However a secret is written, it does not stand in what people see.
func TestSecretsAreHidden(t *testing.T) {
	for _, secret := range []string{"s3cr3t-w0rd", `pa'ss "word" <&>`, "line-one-secret\nline-two-secret\n", "tab\tand\\slash", "größe-ß-päss"} {
		r := newRedactor(map[string]string{"p": secret, "empty": ""})
		quoted, _ := json.Marshal(secret)
		var unescaped strings.Builder
		e := json.NewEncoder(&unescaped)
		e.SetEscapeHTML(false)
		e.Encode(secret)
		forms := []string{
			secret, "x" + secret + "y", url.QueryEscape(secret), string(quoted), unescaped.String(), fmt.Sprintf("%q", secret),
			"'" + strings.ReplaceAll(secret, "'", `'\''`) + "'",
			base64.StdEncoding.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte("user:" + secret)),
			base64.StdEncoding.EncodeToString([]byte("ab" + secret + "tail")),
			"+" + strings.Join(strings.Split(strings.TrimSpace(secret), "\n"), "\n+"),
		}
		for _, form := range forms {
			reply := &pb.RunScriptResponse{
				Error:   &pb.ScriptError{Op: form, Code: form, Object: form, Message: form, Script: form, Traceback: form, Hint: form, Limit: form},
				Changes: []*pb.Change{{Op: form, Target: form, Diff: form, Action: form}},
				Log:     []*pb.LogLine{{Message: form}},
				Script:  &pb.ScriptRef{Name: form},
				Result:  structpb.NewStringValue("kept: " + secret),
			}
			r.reply(reply)
			if !strings.Contains(reply.Result.GetStringValue(), secret) {
				t.Error("the result was changed")
			}
			reply.Result = nil
			if text := prototext.Format(reply); !strings.Contains(text, hidden) {
				t.Errorf("%q as %q is shown: %s", secret, form, text)
			}
		}
	}
	if r := newRedactor(nil); r.text("nothing to hide") != "nothing to hide" {
		t.Error("a text without secrets was changed")
	}
}
