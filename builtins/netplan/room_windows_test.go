package netplan

import (
	"errors"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Every row answers that there is no such thing, by its name, whatever it is asked; nothing is run.
func TestEveryRowIsUnsupported(t *testing.T) {
	table := builtins.NewTable(New(&guest.Guest{Live: true}, Config{Machine: true}).Room())
	for _, op := range table.Ops() {
		_, err := op.Call(t.Context(), &builtins.Call{}, op.In.ProtoReflect().New().Interface())
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s gives %v", op.Name, err)
		}
	}
	in := &pb.ConfigureNetworkRequest{NetplanConfig: "netsh x & echo pwned > f", ApplyNow: true}
	if _, err := table.Native(in).Call(t.Context(), &builtins.Call{}, in); err == nil || !strings.Contains(err.Error(), "not supported: Windows has no netplan") {
		t.Error(err)
	}
	if len(table.Capabilities(func(*builtins.Op) bool { return false })) > 0 {
		t.Error("it is announced")
	}
}
