package quiesce

import (
	"errors"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Nothing is frozen on Windows, nothing says that it was, and nothing announces it.
func TestUnsupported(t *testing.T) {
	r := New(&guest.Guest{Live: true}, Config{Machine: true, Frozen: freeze.New(freeze.Config{})})
	_, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{})
	reply := failedReply(err).(*pb.QuiesceFilesystemsResponse)
	if !errors.Is(err, errors.ErrUnsupported) || reply.Success || !strings.Contains(reply.Error, "not supported on Windows") {
		t.Error(reply, err)
	}
	if _, err := r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	room := r.Room()
	for _, op := range room.Ops {
		if op.Capability != "" {
			t.Error(op.Name, "is announced")
		}
	}
	if room.Features != nil {
		t.Error(room.Features())
	}
}
