package script

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
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

// A part of a secret is hidden as well: where a text was cut, or broken into lines. What is left of it is shorter than a piece.
func TestPartsOfSecretsAreHidden(t *testing.T) {
	const secret = "Tr0ub4dor-and-3-correct horse battery staple-0123456789-abcdefghij-KLMNOPQRST-größe"
	r := newRedactor(map[string]string{"p": secret, "other": "short"})
	lines := func(s string, n int, sep string) (out string) {
		for len(s) > n {
			out, s = out+s[:n]+sep, s[n:]
		}
		return out + s
	}
	encoded := base64.StdEncoding.EncodeToString([]byte("user:" + secret + secret))
	for _, text := range []string{
		secret[3:], "usage " + secret[:40], secret[9:35] + "…", lines(encoded, 76, "\n"), "+" + lines(encoded, 76, "\n+"),
		encoded[9:50], lines(secret, 20, "\r\n"), hex.EncodeToString([]byte(secret))[5:60], fmt.Sprintf("%X", secret),
		lines(fmt.Sprintf("%x", secret), 32, "\n"), "a" + lines(encoded, 64, "\n-") + "z", secret[len(secret)-10:],
	} {
		told := r.text(text)
		if !strings.Contains(told, hidden) || !utf8.ValidString(told) {
			t.Errorf("%q is told as %q", text, told)
		}
		for _, form := range []string{secret, encoded, hex.EncodeToString([]byte(secret)), fmt.Sprintf("%X", secret)} {
			form, _ := squeeze(form)
			squeezed, _ := squeeze(strings.ReplaceAll(told, hidden, "\x00"))
			for at := range len(form) - 11 {
				if bytes.Contains(squeezed, form[at:at+11]) { // of base64 what hangs on its neighbours is no form of the secret
					t.Fatalf("%q is told as %q, with %q", text, told, form[at:at+11])
				}
			}
		}
	}
	for text, want := range map[string]string{
		"a short one": "a [secret] one", "before " + secret + " after": "before [secret] after", "low battery, KLMN": "low battery, KLMN",
		"ä-größ, b": "ä-größ, b",
	} {
		if told := r.text(text); told != want {
			t.Errorf("%q is told as %q", text, told)
		}
	}
}

// A large secret costs little, and is hidden all the same.
func TestLargeSecret(t *testing.T) {
	var lines []string
	for i := range 20_000 {
		lines = append(lines, fmt.Sprintf("%x", sha256.Sum256([]byte{byte(i), byte(i >> 8)})))
	}
	secret := strings.Join(lines, "\n")
	r := newRedactor(map[string]string{"p": secret})
	if len(r.pieces) > 30*mostPieces {
		t.Error(len(r.pieces), "pieces")
	}
	if told := r.text("x " + secret[100_000:102_000] + " y"); !strings.HasPrefix(told, hidden) && !strings.HasPrefix(told, "x") || len(told) > 1000 {
		t.Errorf("%d bytes are left: %.200q", len(told), told)
	}
}

// So it is as UTF-16, which programs of Windows write, and in what PowerShell takes as a command.
func TestWideSecretsAreHidden(t *testing.T) {
	for _, secret := range []string{"s3cr3t-w0rd", `pa'ss "word" <&>`, "größe-ß-päss", "key-\U0001F511-word"} {
		r := newRedactor(map[string]string{"p": secret})
		for name, order := range map[string]binary.AppendByteOrder{"little endian": binary.LittleEndian, "big endian": binary.BigEndian} {
			wide := func(s string) []byte {
				var b []byte
				for _, unit := range utf16.Encode([]rune(s)) {
					b = order.AppendUint16(b, unit)
				}
				return b
			}
			forms := map[string]string{
				"raw": string(wide("set " + secret + " here")), "shown": text.ToValidUTF8(string(wide("set " + secret + " here"))),
				"hex": hex.EncodeToString(wide(secret)), "upper": strings.ToUpper(hex.EncodeToString(wide(secret))),
			}
			if name == "little endian" {
				for _, before := range []string{"", "a", "set ", "and set it"} {
					forms["base64 behind "+before] = base64.StdEncoding.EncodeToString(wide(before + secret + "; exit"))
				}
			}
			for form, written := range forms {
				shown := r.text(written)
				if !strings.Contains(shown, hidden) || strings.Contains(shown, string(wide(secret[:6]))) ||
					len(strings.ReplaceAll(shown, hidden, "")) > len(written)-len(wide(secret))/2 {
					t.Errorf("%q, %s, %s: %q is shown of %q", secret, name, form, shown, written)
				}
			}
		}
	}
}
