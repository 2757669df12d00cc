package exec

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What a policy is asked about is what runs: a lone program is no line for a shell.
func TestStreamRunsWhatItSays(t *testing.T) {
	r, _ := room(t, Config{})
	for _, test := range []struct {
		in   proto.Message
		want []string
	}{
		{&pb.ExecStartRequest{Command: "id -u"}, shellLine("id -u")},
		{&pb.ExecStartRequest{Command: "id", Program: true}, []string{"id"}},
		{&pb.ExecStartRequest{Command: "id", Args: []string{"-u"}}, []string{"id", "-u"}},
		{&pb.ExecuteRequest{Command: "id -u"}, shellLine("id -u")},
	} {
		if got := nativeAccess(test.in).Commands[0].Argv; !slices.Equal(got, test.want) {
			t.Errorf("%v: the policy sees %q", test.in, got)
		}
		if in, ok := test.in.(*pb.ExecStartRequest); ok {
			if spec, err := r.streamSpec(in); err != nil || !slices.Equal(spec.Argv, test.want) {
				t.Errorf("%v: %q runs: %v", in, spec.Argv, err)
			}
		}
	}
}
