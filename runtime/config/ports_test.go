package config

import "testing"

// Each name that a port can have may be restricted, and has a protocol.
func TestPortNames(t *testing.T) {
	for _, name := range []string{
		"org.quantix.agent.0", "org.quantix.agent.*", "org.limiquantix.agent.1", "unix:/run/x", "unix-connect:/run/x", "vsock:9443", "pipe:x", "/dev/vport0p1",
	} {
		if !isPortPattern(name) || ProtocolOf(name) != Native {
			t.Errorf("%s: %v, %s", name, isPortPattern(name), ProtocolOf(name))
		}
	}
	if !IsOnlyPort("unix:/run/x") || !IsOnlyPort("/dev/vport0p1") || IsOnlyPort("org.quantix.agent.0") || IsOnlyPort("org.qemu.guest_agent.0") {
		t.Error("which port is the only one of its agent is not told")
	}
	for _, name := range []string{"", "org.quantix.agent.", "org.quantix.agent1", "unix:", "vport0p1", "unix:[", "org.qemu.guest_agent.0"} {
		if isPortPattern(name) {
			t.Errorf("%s can be restricted, but is no port's name", name)
		}
	}
	if ProtocolOf("vport0p1") != Native {
		t.Error("a device by its relative path speaks something else")
	}
}
