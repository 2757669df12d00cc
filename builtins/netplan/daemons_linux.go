package netplan

import (
	"context"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
)

// keptTime is how long a connection to the bus is kept that nobody uses: a file is set, and applied then. To make one takes as
// long as all questions that go by it.
const keptTime = 5 * time.Second

// daemons is the connection to the daemons that have to do with the network, made when it is needed first. It is safe for
// concurrent use.
type daemons struct {
	mu    sync.Mutex
	conn  *sysbus.Conn
	users int
	idle  *time.Timer  // closes what nobody uses
	begun map[int]bool // the interfaces that systemd-networkd has begun to configure since it read its files last
}

// begins notes an interface that systemd-networkd has begun to configure; nil: of none any more.
func (d *daemons) begins(index *int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if index == nil {
		d.begun = map[int]bool{}
		return
	}
	d.begun[*index] = true
}

// hasBegun reports whether systemd-networkd has begun to configure an interface since it read its files last.
func (d *daemons) hasBegun(index int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.begun[index]
}

// use keeps the connection, if there is one, until the returned function is called, and keptTime longer.
func (d *daemons) use() (done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users++; d.idle != nil {
		d.idle.Stop()
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.users--; d.users == 0 && d.conn != nil {
			d.idle = time.AfterFunc(keptTime, d.expire)
		}
	}
}

func (d *daemons) expire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users == 0 {
		d.drop()
	}
}

// open returns the connection; an error is that of sysbus.Open. One that broke is made anew.
func (d *daemons) open(ctx context.Context) (*sysbus.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn != nil && d.conn.Connected() {
		return d.conn, nil
	}
	d.drop()
	var err error
	d.conn, err = sysbus.Open(context.WithoutCancel(ctx)) // it outlives what it is needed for first
	return d.conn, err
}

// prepare opens the connection while other things go on, for who will need it soon.
func (d *daemons) prepare(ctx context.Context) {
	done := d.use()
	go func() {
		defer done()
		_, _ = d.open(ctx) // who needs it gets the error
	}()
}

// drop closes the connection. The caller holds mu.
func (d *daemons) drop() {
	if d.conn != nil {
		_ = d.conn.Close() // one that broke is closed already
		d.conn = nil
	}
}

// close closes the connection.
func (d *daemons) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.idle != nil {
		d.idle.Stop()
	}
	d.drop()
}
