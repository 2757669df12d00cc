//go:build vm

package vmtest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
)

// Hosts follow each other without a gap, and the guest is busy, so that it learns of a change late, or in the middle of what the
// next host asks for: each of them has its command run, hears what it wrote, and how it ended.
func TestChannelHostsWithoutAGap(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	dial(t, vm, vmtest.CtlPort, client.Options{}).Close()
	vm.Must(t, "for i in 1 2 3; do systemd-run --quiet sh -c 'while :; do :; done'; done")
	for i := range rounds(150) {
		if err := echoOnce(vm); err != nil {
			t.Errorf("host %d: %v", i, err)
		}
	}
}

// echoOnce connects, runs a command with its output, and leaves.
func echoOnce(vm *vmtest.VM) error {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	c, err := client.Dial(ctx, vm.Socket(vmtest.CtlPort), client.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Alive(ctx); err != nil {
		return err
	}
	s, err := c.Stream(ctx, client.Command{Argv: []string{"echo", "hello"}}, client.StreamOptions{})
	if err != nil {
		return err
	}
	defer s.Close()
	var got bytes.Buffer
	for {
		out, err := s.Next(ctx)
		got.Write(out.Stdout)
		switch {
		case err == io.EOF && got.String() == "hello\n":
			return nil
		case err == io.EOF:
			return errors.New("the command wrote " + got.String())
		case err != nil:
			return err
		}
	}
}
