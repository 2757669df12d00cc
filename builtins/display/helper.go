package display

import (
	"context"
	"os"
	"sync"

	"github.com/quantix-kvm/guest-agent/builtins/display/outputs"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/helper"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Serve has the helper in a desktop session serve what the room asks of it.
func Serve(r *helper.Registry) {
	var setting sync.Mutex // a list in the middle of a change would be neither the former state nor the new one
	helper.Handle(r, func(ctx context.Context, _ *pb.ListDisplaysRequest) (*pb.ListDisplaysResponse, error) {
		setting.Lock()
		defer setting.Unlock()
		b, err := outputs.Open(ctx, os.Getenv)
		if err != nil {
			return nil, err
		}
		defer b.Close()
		return b.Outputs(ctx)
	})
	helper.Handle(r, func(ctx context.Context, in *pb.DisplayLayoutRequest) (*pb.ListDisplaysResponse, error) {
		setting.Lock()
		defer setting.Unlock()
		b, err := outputs.Open(ctx, os.Getenv)
		if err != nil {
			return nil, err
		}
		defer b.Close()
		return outputs.Set(ctx, b, in.Outputs)
	})
}
