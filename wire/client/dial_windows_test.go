package client

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"testing"
	"time"

	"github.com/Microsoft/go-winio"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// The end of a pipe is one of the connection, whichever call meets it first; an error of a file is none.
func TestPipeThatHasGone(t *testing.T) {
	const name = pipePrefix + "quantix-client-test"
	if _, err := dialLocal(t.Context(), name); !Gone(err) {
		t.Error("no pipe:", err)
	}
	l, err := winio.ListenPipe(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	lost, err := dialLocal(t.Context(), name) // under Wine it has nobody at the other end
	if err != nil {
		t.Fatal(err)
	}
	defer lost.Close()
	conn, err := dialLocal(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.(net.Conn).SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for err == nil { // what is on its way may still be taken
		_, err = conn.Write(make([]byte, 1<<10))
	}
	if !Gone(fmt.Errorf("push: %w", err)) {
		t.Error("written to:", err)
	}
	conn.Close()
	if _, err := conn.Write([]byte("x")); !Gone(err) {
		t.Error("closed:", err)
	}
	file := &fs.PathError{Op: "open", Path: `C:\file`, Err: fs.ErrNotExist}
	if Gone(file) || Gone(fault.Refuse("no")) || Gone(errors.New("x")) {
		t.Error("another error is one of the connection")
	}
}
