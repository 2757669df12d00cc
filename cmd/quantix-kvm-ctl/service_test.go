package main

import (
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What goes to the agent for each command line, and what people see of its replies. An agent that takes unknown actions for a
// question about the state is not asked for what it would not do.
func TestService(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	features := map[string]string{}
	socket := fakeAgent(t, func(_ *wire.Conn, _ string, request proto.Message) (proto.Message, error) {
		mu.Lock()
		defer mu.Unlock()
		nginx := &pb.ServiceInfo{Name: "nginx", State: "running", StartType: "auto", Pid: 47, MemoryBytes: 3 << 20, Description: "a server\x1b"}
		switch in := request.(type) {
		case *pb.GetCapabilitiesRequest:
			return &pb.GetCapabilitiesResponse{Features: features}, nil
		case *pb.ListServicesRequest:
			asked = append(asked, strings.TrimSpace("list "+in.Filter))
			return &pb.ListServicesResponse{Success: true, Services: []*pb.ServiceInfo{nginx, {Name: "off", State: "inactive"}}}, nil
		case *pb.ServiceControlRequest:
			asked = append(asked, strings.TrimPrefix(in.Action.String(), "SERVICE_ACTION_")+" "+in.Name)
			if in.Name == "agent" {
				return &pb.ServiceControlResponse{Success: true, NewState: "deactivating", Changed: true}, nil
			}
			return &pb.ServiceControlResponse{Success: true, NewState: "running", Service: nginx, Changed: in.Name == "nginx"}, nil
		}
		return nil, fault.Unsupported("no")
	})
	run := func(line string) (int, string, string) {
		return ctl(t, append([]string{"-s", socket, "service"}, strings.Fields(line)...)...)
	}
	for _, verb := range []string{"reload", "mask", "unmask"} {
		if code, _, stderr := run(verb + " nginx"); code != exitRefused || !strings.Contains(stderr, "the agent in the guest cannot "+verb) {
			t.Errorf("%s: %d %s", verb, code, stderr)
		}
	}
	mu.Lock()
	features["service_control"] = "reload,mask,unmask"
	mu.Unlock()
	var want []string
	for _, verb := range []string{"start", "stop", "restart", "reload", "enable", "disable", "mask", "unmask", "status"} {
		want = append(want, strings.ToUpper(verb)+" nginx")
		if code, _, stderr := run(verb + " nginx"); code != 0 || stderr != "" {
			t.Errorf("%s: %d %s", verb, code, stderr)
		}
	}
	for _, test := range []struct {
		line           string
		code           int
		asked          string
		stdout, stderr string
	}{
		{"list", 0, "list", "nginx  running   auto    47   3.0 MiB  a server\\x1b\noff    inactive  -       -    -", ""},
		{"list ngi --running", 0, "list ngi", "NAME", ""},
		{"list --json", 0, "list", `[{"name":"nginx",`, ""},
		{"status nginx", 0, "STATUS nginx", "nginx  running  auto    47   3.0 MiB", ""},
		{"start other", 0, "START other", "", "other: nothing to do, it is running, and starts: auto"},
		{"restart agent", 0, "RESTART agent", "", "agent: deactivating"},
		{"stop --json nginx", 0, "STOP nginx", `"changed":true`, ""},
		{"", exitUsage, "", "", "service needs list"},
		{"start", exitUsage, "", "", "arg"},
		{"list a b", exitUsage, "", "", "arg"},
	} {
		code, stdout, stderr := run(test.line)
		if code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
			t.Errorf("%s: %d\n%s\n%s", test.line, code, stdout, stderr)
		}
		if test.asked != "" {
			want = append(want, test.asked)
		}
	}
	if code, stdout, _ := ctl(t, "-s", socket, "__complete", "service", "restart", "ng"); code != 0 || !strings.HasPrefix(stdout, "nginx\ta server") {
		t.Errorf("%d %q", code, stdout)
	}
	want = append(want, "list")
	if got := strings.Join(asked, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("asked for\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}
