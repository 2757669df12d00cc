package client

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// The virtual machines that are listed are those that are found by their id.
func TestListVMs(t *testing.T) {
	root, err := os.MkdirTemp("", "vms-") // short: a socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	for _, path := range []string{
		"var/run/quantix-kvm/vms/one.agent.sock", "var/run/quantix-kvm/vms/two.agent.1.sock",
		"run/libvirt/qemu/channel/12-web/org.quantix.agent.1", "var/lib/libvirt/qemu/channel/target/domain-3-old/org.quantix.agent.1", "run/libvirt/qemu/channel/13-other/org.qemu.guest_agent.0",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	if got := fmt.Sprint(ListVMs(root)); got != "[old one two web]" {
		t.Error(got)
	}
	for _, id := range ListVMs(root) {
		if _, err := FindSocket(root, id); err != nil {
			t.Error(err)
		}
	}
	if got := ListVMs(filepath.Join(root, "nothing")); len(got) != 0 {
		t.Error(got)
	}
}
