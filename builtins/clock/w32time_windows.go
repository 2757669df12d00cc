package clock

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// openService opens the time service. The caller closes both.
func openService(access uint32) (*mgr.Mgr, *mgr.Service, error) {
	handle, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return nil, nil, fault.Cause(err)
	}
	m := &mgr.Mgr{Handle: handle}
	name, err := windows.UTF16PtrFromString(serviceName)
	if err != nil {
		return nil, nil, err
	}
	service, err := windows.OpenService(handle, name, access)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		err = fault.Unsupported("there is no service %s", serviceName)
	}
	if err != nil {
		m.Disconnect()
		return nil, nil, fault.Cause(err)
	}
	return m, &mgr.Service{Name: serviceName, Handle: service}, nil
}

func serviceRuns() (bool, error) {
	m, s, err := openService(windows.SERVICE_QUERY_STATUS)
	if err != nil {
		return false, err
	}
	defer m.Disconnect()
	defer s.Close()
	status, err := s.Query()
	return status.State == svc.Running, fault.Cause(err)
}

// restartService stops and starts the service.
func restartService(ctx context.Context) error {
	m, s, err := openService(windows.SERVICE_QUERY_STATUS | windows.SERVICE_STOP | windows.SERVICE_START)
	if err != nil {
		return err
	}
	defer m.Disconnect()
	defer s.Close()
	if _, err := s.Control(svc.Stop); err != nil && !errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
		return fault.Cause(err)
	}
	// Whatever becomes of the wait, a service that was stopped is started again.
	waited := awaitState(ctx, s, svc.Stopped)
	if err := s.Start(); err != nil && !errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING) {
		return errors.Join(waited, fault.Cause(err))
	}
	return errors.Join(waited, awaitState(ctx, s, svc.Running))
}

func awaitState(ctx context.Context, s *mgr.Service, want svc.State) error {
	for {
		status, err := s.Query()
		if err != nil || status.State == want {
			return fault.Cause(err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// configuredServers reads whom the service asks. In a domain it finds them itself, and the agent does not know them.
func configuredServers() ([]string, error) {
	const path = `SYSTEM\CurrentControlSet\Services\W32Time\Parameters`
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, path, registry.QUERY_VALUE)
	if err != nil {
		return nil, fault.On(path, fault.Cause(err))
	}
	defer key.Close()
	kind, _, _ := key.GetStringValue("Type")
	list, _, _ := key.GetStringValue("NtpServer")
	if !strings.EqualFold(kind, "NTP") && !strings.EqualFold(kind, "AllSync") {
		return nil, fault.Unsupported(
			"%s has its time of %q and not of configured servers, so nobody knows how far the clock is off", serviceName, kind)
	}
	return parseServers(list), nil
}

// parseServers reads a list such as "time.windows.com,0x9 192.0.2.1": after each comma are flags.
func parseServers(list string) (servers []string) {
	for word := range strings.FieldsSeq(list) {
		if name, _, _ := strings.Cut(word, ","); name != "" {
			servers = append(servers, name)
		}
	}
	return servers
}

// ntpEpoch is the beginning of NTP's first era.
var ntpEpoch = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)

// askServer asks a server once by SNTP (RFC 4330).
func askServer(ctx context.Context, server string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	address := server
	if _, _, err := net.SplitHostPort(server); err != nil {
		address = net.JoinHostPort(server, "123")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	until, _ := ctx.Deadline()
	if err := conn.SetDeadline(until); err != nil {
		return 0, err
	}
	var request [48]byte
	request[0] = 4<<3 | 3 // version, client
	sent := time.Now()
	binary.BigEndian.PutUint64(request[40:], ntpTime(sent))
	if _, err := conn.Write(request[:]); err != nil {
		return 0, err
	}
	var reply [512]byte
	for {
		n, err := conn.Read(reply[:])
		if err != nil {
			return 0, err
		}
		came := sent.Add(time.Since(sent)) // by the monotonic clock, which no step moves
		if offset, ok := parseReply(reply[:n], request[40:48], sent, came); ok {
			return offset, nil
		}
	}
}

// parseReply returns the clock's offset by an NTP reply. It returns false if the reply is not to this request, or the server is not
// synchronised.
func parseReply(reply, originate []byte, sent, came time.Time) (time.Duration, bool) {
	const server, unsynchronised = 4, 3
	if len(reply) < 48 || reply[0]&7 != server || reply[0]>>6 == unsynchronised || reply[1] == 0 || reply[1] > 15 ||
		string(reply[24:32]) != string(originate) {
		return 0, false
	}
	received, left := fromNTP(binary.BigEndian.Uint64(reply[32:]), sent), fromNTP(binary.BigEndian.Uint64(reply[40:]), sent)
	there, back := received.Sub(sent.Round(0)), left.Sub(came.Round(0))
	return there/2 + back/2, true
}

// ntpTime is a time as NTP has it: seconds of its era, and a fraction of 32 bits.
func ntpTime(at time.Time) uint64 {
	since := at.Unix() - ntpEpoch.Unix()
	return uint64(since)<<32 | uint64(at.Nanosecond())<<32/1e9
}

// fromNTP is the time that NTP has, of the era that makes it nearest to another time.
func fromNTP(stamp uint64, near time.Time) time.Time {
	at := ntpEpoch.Unix() + int64(stamp>>32)
	for near.Unix()-at > 1<<31 {
		at += 1 << 32
	}
	return time.Unix(at, int64(stamp&(1<<32-1))*1e9>>32)
}
