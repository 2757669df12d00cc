package agenttest

import (
	"net"
	"testing"
)

// Listen returns a listener on a socket, or on Windows a pipe, that tools can connect to; it is closed with the test.
func Listen(t testing.TB) (l net.Listener, socket string) {
	t.Helper()
	socket, open := ListenLater(t)
	l, err := open()
	if err != nil {
		t.Fatal(err)
	}
	return l, socket
}

// ListenLater is Listen for a socket that is not there yet: open makes it, once, in any goroutine.
func ListenLater(t testing.TB) (socket string, open func() (net.Listener, error)) {
	t.Helper()
	socket, _ = newSocket(t)
	return socket, func() (net.Listener, error) {
		l, err := listen(t, socket)
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return l, err
	}
}
