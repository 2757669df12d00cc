//go:build vm

package vmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestResume(t *testing.T) {
	begun := time.Now()
	vm := Start(t, Options{})
	t.Logf("usable after %v", time.Since(begun).Round(time.Millisecond))
	if got := vm.Must(t, "systemctl is-system-running; hostname; cat /proc/sys/kernel/random/boot_id"); !strings.HasPrefix(got, "running\nguest\n") {
		t.Errorf("got %q, want a running system named guest", got)
	}
	t.Logf("first command done after %v", time.Since(begun).Round(time.Millisecond))
}

func TestFresh(t *testing.T) {
	begun := time.Now()
	vm := Start(t, Options{Fresh: true})
	t.Logf("booted after %v", time.Since(begun).Round(time.Millisecond))
	t.Log(vm.Must(t, "systemd-analyze; systemd-analyze blame | head -20; free -m; df -h /; systemctl --failed; ip -br addr; ip route; ls -l /dev/virtio-ports; systemctl is-active qemu-guest-agent ssh || true; ping -c1 10.0.2.2; uptime"))
	t.Log(string(vm.Console()))
	_ = bytes.Equal
	_ = rand.Reader
	_ = os.Args
	_ = filepath.Join
	_ = context.Background
}
