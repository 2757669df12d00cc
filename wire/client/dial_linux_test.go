package client

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/vsock"
)

func TestDialVsockAddresses(t *testing.T) {
	for _, address := range []string{"vsock:", "vsock:x", "vsock:3:", "vsock:3:x", "vsock:3:4:5", "vsock:-1:4", "vsock:4294967296:4"} {
		c, err := Dial(t.Context(), address, Options{})
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), address) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// Over vsock the client reaches who listens there.
func TestDialVsock(t *testing.T) {
	l, err := vsock.Listen(vsockPort, nil)
	if err != nil {
		t.Skip("no vsock here: load the module vsock_loopback, as root:", err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	probe, err := vsock.DialContext(ctx, vsock.Local, vsockPort, nil)
	if err != nil {
		t.Skip("no loopback of vsock: load the module vsock_loopback, as root:", err)
	}
	probe.Close()
	for _, address := range []string{"vsock:1", "vsock:1:9443"} {
		c, err := Dial(ctx, address, Options{})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}
