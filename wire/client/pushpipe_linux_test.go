package client

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A push ends with its context, whatever it reads from waits for.
func TestPushEndsWhileItsPipeIsSilent(t *testing.T) {
	c, _ := agent(t, func(context.Context, proto.Message) (proto.Message, error) {
		return &pb.FileWriteResponse{Success: true}, nil
	})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := c.PushFile(ctx, "/f", r, PushOptions{})
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it still waits")
	}
}
