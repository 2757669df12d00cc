package core

import "testing"

// A state directory below a mount point of fstab on which nothing is mounted is not the state directory.
func TestUnmounted(t *testing.T) {
	const fstab = "# /dev/vda9 /var ext4 defaults 0 2\nUUID=1 / ext4 defaults 0 1\nUUID=2 /va ext4 defaults 0 2\n" +
		"UUID=3 /var\\040x ext4 nofail 0 2\nUUID=4\t/var/lib\text4\tnofail,x 0 2\nUUID=5 /var/lib/quantix-kvm ext4 noauto 0 2\nUUID=6 none swap sw 0 0\n"
	for dir, want := range map[string]string{
		"/var/lib/quantix-kvm": "/var/lib", "/var/lib": "/var/lib", "/var x/state": "/var x", "/srv/state": "", "/va/x": "/va",
	} {
		if point := unmounted(fstab, dir, func(point string) bool { return false }); point != want {
			t.Errorf("%s waits for %q", dir, point)
		}
	}
	if point := unmounted(fstab, "/var/lib/quantix-kvm", func(point string) bool { return point == "/var/lib" }); point != "" {
		t.Error(point)
	}
}
