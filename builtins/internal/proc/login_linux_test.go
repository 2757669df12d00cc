package proc

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// The environment that is kept is that of the accounts as they are, and nobody's to change.
func TestLoginEnvIsKept(t *testing.T) {
	r := New(Config{Name: "quantix-kvm-login"})
	defer r.Release()
	want := LoginEnv(nil)
	for range 3 {
		got := r.LoginEnv(nil)
		if !slices.Equal(got, want) {
			t.Fatalf("%q, and not %q", got, want)
		}
		got[0] = "PATH=/changed"
	}
	if r.login.known.Ino == 0 {
		t.Skip("the accounts were changed just now")
	}
	r.login.kept = []string{"HOME=/of/former/accounts"}
	r.login.known.Ctim = unix.NsecToTimespec(1) // as if they had been changed since
	if got := r.LoginEnv(nil); !slices.Equal(got, want) {
		t.Errorf("%q, and not %q", got, want)
	}
}
