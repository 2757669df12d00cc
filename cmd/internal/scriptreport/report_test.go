package scriptreport

import (
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestErrorText(t *testing.T) {
	for want, e := range map[string]*pb.ScriptError{
		"busy: another transaction is open":         {Kind: "busy", Message: "busy: another transaction is open"},
		"timeout: it took too long (limit timeout)": {Kind: "timeout", Message: "it took too long", Limit: "timeout"},
		"s.lua:2: syntax: unexpected end\nhint: x":  {Kind: "syntax", Script: "s.lua", Line: 2, Message: "unexpected end", Hint: "x"},
		"s.lua:2: stop": {Kind: "runtime", Script: "s.lua", Line: 2, Message: "s.lua:2: stop"},
	} {
		if got := ErrorText(e); got != want {
			t.Errorf("%q, wanted %q", got, want)
		}
	}
}
