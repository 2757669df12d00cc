//go:build vm

package vmtest_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The agent is killed at any moment of a change: the network is the old one then, or the new one, and so are the files.
func TestNetplanByAKilledAgent(t *testing.T) {
	t.Parallel()
	n := bootNetwork(t)
	now, other, changed := "192.0.2.10", "192.0.2.11", 0
	const whole = 200 * time.Millisecond // longer than a change takes
	for round := range rounds(8) {
		began := make(chan struct{})
		source := "netplan.set('99-limiquantix', [[\n" + netText(other) + "]])\nreturn netplan.apply()"
		go func() {
			close(began)
			_, _ = client.Call[*pb.RunScriptResponse](limited(t, time.Minute), n.agent, &pb.RunScriptRequest{Source: []byte(source)})
		}()
		<-began
		time.Sleep(rand.N(whole))
		n.run("systemctl kill --kill-whom=main -s KILL agent")
		n.agent.Close()
		n.agent = n.container.agent()
		n.status()
		got := n.run("ip -o -4 addr show dev lan0 | awk '{print $4}'; ip -4 route | grep -c '^default via 192.0.2.1 '; " +
			"grep -o 'addresses: .[0-9.]*' /etc/netplan/99-limiquantix.yaml | grep -o '[0-9.]*$'; " +
			"grep -o '^Address=[0-9.]*' /run/systemd/network/10-netplan-lan0.network; ls /run | grep -c quantix-netplan || true; " +
			"ls /var/lib/quantix-kvm/tx/open")
		is := func(address string) bool {
			return got == address+"/24\n1\n"+address+"\nAddress="+address+"\n0"
		}
		switch {
		case is(now):
		case is(other):
			now, other, changed = other, now, changed+1
		default:
			t.Fatalf("round %d, from %s to %s: it is\n%s", round, now, other, got)
		}
	}
	t.Logf("%d of %d changes were committed", changed, rounds(8))
}
