package facts

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
)

// DNS returns the name servers of the links that are up, and the domains that names are completed with, each once, in the
// order of the links.
func DNS() (servers, search []string, err error) {
	const flags = windows.GAA_FLAG_SKIP_UNICAST | windows.GAA_FLAG_SKIP_ANYCAST | windows.GAA_FLAG_SKIP_MULTICAST |
		windows.GAA_FLAG_SKIP_FRIENDLY_NAME
	size := uint32(32 << 10)
	var buffer []uint64
	for {
		buffer = make([]uint64, (size+7)/8)
		size = uint32(8 * len(buffer))
		err := windows.GetAdaptersAddresses(windows.AF_UNSPEC, flags, 0,
			(*windows.IpAdapterAddresses)(unsafe.Pointer(&buffer[0])), &size)
		if err == nil {
			break
		}
		if errors.Is(err, windows.ERROR_NO_DATA) {
			return nil, nil, nil
		}
		if !errors.Is(err, windows.ERROR_BUFFER_OVERFLOW) || size > 16<<20 {
			return nil, nil, err
		}
	}
	for a := (*windows.IpAdapterAddresses)(unsafe.Pointer(&buffer[0])); a != nil; a = a.Next {
		if a.OperStatus != windows.IfOperStatusUp {
			continue
		}
		for server := a.FirstDnsServerAddress; server != nil; server = server.Next {
			addr, ok := netip.AddrFromSlice(server.Address.IP())
			text := addr.Unmap().String()
			// Windows has three addresses of a range that was given up where a link has none (fec0:0:0:ffff::1 to ::3).
			if !ok || strings.HasPrefix(text, "fec0:0:0:ffff::") || slices.Contains(servers, text) {
				continue
			}
			servers = append(servers, text)
		}
		if domain := windows.UTF16PtrToString(a.DnsSuffix); domain != "" && !slices.Contains(search, domain) {
			search = append(search, domain)
		}
	}
	return servers, search, nil
}
