package agenttest

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy stands between hosts and an agent, and cuts connections.
type Proxy struct {
	Socket string // where hosts connect
	// Carried counts the bytes of all connections in both directions.
	Carried atomic.Int64
	// Connections counts them.
	Connections atomic.Int32
}

// Cut says after how many bytes the connection with a number, from 0, is cut: from the host and from the guest; 0: never.
type Cut func(connection int) (fromHost, fromGuest int64)

// NewProxy starts a proxy in front of an agent and ends it with the test.
func NewProxy(t testing.TB, a *Agent, cut Cut) *Proxy {
	t.Helper()
	l, socket := Listen(t)
	p := &Proxy{Socket: socket}
	var work sync.WaitGroup
	t.Cleanup(func() { l.Close(); work.Wait() })
	work.Go(func() {
		for {
			host, err := l.Accept()
			if err != nil {
				return
			}
			fromHost, fromGuest := cut(int(p.Connections.Add(1)) - 1)
			work.Go(func() { p.serve(a.Socket, host, fromHost, fromGuest) })
		}
	})
	return p
}

// grace is how long replies go on where the host's direction was cut.
const grace = 200 * time.Millisecond

// serve carries one connection until one end or one bound is reached, and then ends both ends.
func (p *Proxy) serve(socket string, host net.Conn, fromHost, fromGuest int64) {
	defer host.Close()
	guest, err := dial(socket)
	if err != nil {
		return
	}
	defer guest.Close()
	var both sync.WaitGroup
	carry := func(to, from net.Conn, bound int64) {
		var reader io.Reader = from
		if bound > 0 {
			reader = io.LimitReader(from, bound)
		}
		n, _ := io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{reader})
		p.Carried.Add(n)
		if to == guest && n == bound { // replies to what came through are still on their way
			time.Sleep(grace)
		}
		host.Close()
		guest.Close()
	}
	both.Go(func() { carry(guest, host, fromHost) })
	both.Go(func() { carry(host, guest, fromGuest) })
	both.Wait()
}
