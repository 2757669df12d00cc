package netplan

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	// inquiryTime is how long the users of addresses are looked for at most, in up to six questions for each.
	inquiryTime = 2*askAgain + askAgain/2
	// quietTime is how long nobody must answer on a link of which nothing is known, before a change is good: neighbours answer
	// within a few milliseconds. Where a gateway of that link has answered, quietFactor times what it took is enough, since the
	// question went to all others with that to it, but not less than quietLeast. Renderers take longer than that most often.
	quietTime   = 100 * time.Millisecond
	quietLeast  = 20 * time.Millisecond
	quietFactor = 10
)

// inquiry asks who else has the addresses that interfaces shall get, while other things go on. Who answers at once is known
// before anything is changed, and the rest when the new network has been checked.
type inquiry struct {
	began time.Time
	links []int // that are asked on
	stop  context.CancelFunc
	asked sync.WaitGroup
	found chan error
}

// inquire begins to ask for the addresses of a plan that this machine does not have.
func (n *snapshot) inquire(ctx context.Context, p *plan) *inquiry {
	i := &inquiry{began: time.Now(), found: make(chan error, 1)}
	ctx, i.stop = context.WithTimeout(ctx, inquiryTime)
	for _, l := range p.changed {
		for _, have := range n.find(l) {
			for _, prefix := range l.addresses {
				own := slices.ContainsFunc(n.addresses, func(a address) bool { return a.prefix.Addr() == prefix.Addr() })
				if !have.Up || !prefix.Addr().Is4() || own {
					continue
				}
				if q, err := newQuestion(have.Index, prefix.Addr(), netip.Addr{}); err == nil {
					i.links = append(i.links, have.Index)
					i.asked.Go(func() { i.ask(ctx, n, have, q) })
				}
			}
		}
	}
	return i
}

func (i *inquiry) ask(ctx context.Context, n *snapshot, have facts.Link, q *question) {
	who, err := q.ask(ctx)
	if err != nil || n.isOwn(who) {
		return
	}
	select {
	case i.found <- fault.On(have.Name, fault.Refuse("%v is in use: %v has it", q.addr, who)):
	default: // another address is pending already
	}
}

func (n *snapshot) isOwn(mac net.HardwareAddr) bool {
	return slices.ContainsFunc(n.links, func(l facts.Link) bool { return l.MAC == mac.String() })
}

// refused returns an error about an address that somebody is known to have by now.
func (i *inquiry) refused() error {
	select {
	case err := <-i.found:
		i.found <- err
		return err
	default:
		return nil
	}
}

// end waits until nobody has answered for long enough, and returns an error about an address that somebody has. near is how
// long gateways took to answer, by interface.
func (i *inquiry) end(ctx context.Context, near map[int]time.Duration) error {
	var least time.Duration
	for _, index := range i.links {
		quiet := quietTime
		if took, ok := near[index]; ok {
			quiet = min(quiet, max(quietLeast, quietFactor*took))
		}
		least = max(least, quiet)
	}
	rest := time.NewTimer(least - time.Since(i.began))
	defer rest.Stop()
	select {
	case err := <-i.found:
		i.found <- err
		return err
	case <-rest.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return i.refused()
}

// close ends the questions.
func (i *inquiry) close() {
	i.stop()
	i.asked.Wait()
}
