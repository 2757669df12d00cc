//go:build !linux && !windows

package sandbox_test

import (
	"testing"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestRunIsUnsupported(t *testing.T) {
	pool := sandbox.New(sandbox.Config{})
	defer pool.Close()
	out := pool.Run(t.Context(), sandbox.Job{Start: &pb.RunnerStart{Source: []byte("return 1")}})
	if out.Error.GetKind() != "unsupported" {
		t.Errorf("error is %v, want kind unsupported", out.Error)
	}
}
