package main

import (
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Where the journal has nothing the files are looked into, and where they have nothing either that is said.
func TestLogsOfAnEmptyJournal(t *testing.T) {
	var mu sync.Mutex
	journal, file, limits := "", "", ""
	socket := fakeAgent(t, func(_ *wire.Conn, _ string, request proto.Message) (proto.Message, error) {
		mu.Lock()
		defer mu.Unlock()
		run, ok := request.(*pb.ExecuteRequest)
		if !ok {
			return &pb.GetCapabilitiesResponse{Capabilities: []string{"execute"}}, nil
		}
		limits += string('0' + rune(run.TimeoutSeconds))
		if run.Command == "journalctl" {
			return &pb.ExecuteResponse{Stdout: journal}, nil
		}
		return &pb.ExecuteResponse{Stdout: file}, nil
	})
	for _, c := range []struct{ journal, file, stdout, stderr, limits string }{
		{journal: "line\n", file: "other\n", stdout: "line\n", limits: "9"},
		{file: "other\n", stdout: "other\n", limits: "99"},
		{stderr: "quantix-kvm-ctl: logs: nothing of nginx is logged\n", limits: "99"},
	} {
		mu.Lock()
		journal, file, limits = c.journal, c.file, ""
		mu.Unlock()
		code, stdout, stderr := ctl(t, strings.Fields("-s "+socket+" --timeout 9s logs nginx")...)
		if code != 0 || stdout != c.stdout || stderr != c.stderr || limits != c.limits {
			t.Errorf("%+v: %d %q %q, limits %s", c, code, stdout, stderr, limits)
		}
	}
}
