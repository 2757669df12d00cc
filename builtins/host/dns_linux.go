package host

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// resolvConf says who is asked for names (resolv.conf(5)), and maxResolvConf how much of it is read.
	resolvConf    = "/etc/resolv.conf"
	maxResolvConf = 64 << 10
)

// dns returns who is asked for names: what resolv.conf says, and after the server of systemd-resolved that stands there, whom
// that asks.
func (r *Room) dns(ctx context.Context, call *builtins.Call, _ *pb.NoArgs) (*pb.NetDns, error) {
	files := r.guest.Of(call)
	if files == nil {
		return nil, fault.Unsupported("there are no files to read %s from", resolvConf)
	}
	content, err := files.ReadFile(resolvConf, maxResolvConf)
	if errors.Is(err, fs.ErrNotExist) {
		return &pb.NetDns{Manager: "resolv.conf"}, nil
	}
	if err != nil {
		return nil, fault.On(resolvConf, err)
	}
	out := parseResolvConf(string(content))
	if !r.guest.Live || call.DryRun != nil || !slices.ContainsFunc(out.Servers, isStub) {
		return out, nil
	}
	asked, err := resolved(ctx)
	if errors.Is(err, errors.ErrUnsupported) { // it does not run, so nobody answers there
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	asked.Options = out.Options
	return asked, nil
}

// isStub reports whether an address is one on which systemd-resolved listens (systemd-resolved.service(8)).
func isStub(server string) bool { return server == "127.0.0.53" || server == "127.0.0.54" }

// maxServers is how many servers the C libraries ask; they pass over more.
const maxServers = 3

// serverAddress returns the address that the C libraries make of the word behind nameserver; empty: none. Of IPv4 they read the short,
// octal and hexadecimal forms of inet_aton(3) as well, such as 127.1.
func serverAddress(text string) string {
	if _, err := netip.ParseAddr(text); err == nil {
		return text
	}
	parts := strings.Split(text, ".")
	last := len(parts) - 1
	if last > 3 {
		return ""
	}
	var addr [4]byte
	for i, part := range parts {
		bits := 8
		if i == last {
			bits = 8 * (4 - last)
		}
		n, ok := cNumber(part)
		if !ok || n < 0 || n>>bits != 0 {
			return ""
		}
		for at := 3; i == last && at >= i; at-- {
			addr[at] = byte(n)
			n >>= 8
		}
		if i < last {
			addr[i] = byte(n)
		}
	}
	return netip.AddrFrom4(addr).String()
}

// parseResolvConf reads resolv.conf(5): of search and domain the last one counts, and a keyword begins its line.
func parseResolvConf(content string) *pb.NetDns {
	out := &pb.NetDns{Manager: "resolv.conf"}
	for line := range strings.Lines(content) {
		words := strings.Fields(line)
		if len(words) < 2 || !strings.HasPrefix(line, words[0]) {
			continue
		}
		switch words[0] {
		case "nameserver":
			if server := serverAddress(words[1]); server != "" && len(out.Servers) < maxServers {
				out.Servers = append(out.Servers, server)
			}
		case "search":
			out.Search = words[1:]
		case "domain":
			out.Search = words[1:2]
		case "options":
			out.Options = append(out.Options, words[1:]...)
		}
	}
	return out
}
