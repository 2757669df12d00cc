package account

import (
	"context"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// isHashOf reports whether a hash is that of a password.
func isHashOf(text string, password []byte) bool {
	is, err := matches(context.Background(), text, password)
	return is && err == nil
}

// Who hashes by many rounds, or waits for others who hash, can be stopped: what is hashed, or compared, is not finished then.
func TestHashingCanBeStopped(t *testing.T) {
	stop := errors.New("stop")
	stopped := func(what string, hash func(ctx context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		time.AfterFunc(10*time.Millisecond, func() { cancel(stop) })
		if err := hash(ctx); err != stop {
			t.Errorf("%s: %v", what, err)
		}
	}
	password := []byte(strings.Repeat("p", maxPassword))
	for _, m := range []method{sha512Crypt, sha256Crypt} {
		s := newSetting(m, mostRounds)
		stopped("hash", func(ctx context.Context) error { _, err := s.hash(ctx, password); return err })
		stopped("compare", func(ctx context.Context) error { _, err := matches(ctx, s.head()+"x", password); return err })
	}
	yescryptTurn <- struct{}{}
	defer func() { <-yescryptTurn }()
	setting := newYescryptSetting(1)
	stopped("wait", func(ctx context.Context) error { _, err := yescryptHash(ctx, password, setting); return err })
	stopped("wait to compare", func(ctx context.Context) error { _, err := matches(ctx, setting+"$x", password); return err })
}

// A script that sets a password waits until it may hold what a hash takes, and one with a hash does not.
func TestHashingAsksForItsMemory(t *testing.T) {
	g := newTree(t, debian)
	asked := int64(0)
	refuse := errors.New("not now")
	ctx := builtins.WithLarge(t.Context(), func(_ context.Context, size int64) error { asked = size; return refuse })
	set := func(in *pb.AccountPasswordArgs) error {
		_, err := g.room.password(ctx, g.call, in)
		return err
	}
	if err := set(&pb.AccountPasswordArgs{Name: "bob", Password: []byte("secret")}); !errors.Is(err, refuse) || asked != mostYescrypt {
		t.Errorf("%v, asked for %d bytes", err, asked)
	}
	if err := set(&pb.AccountPasswordArgs{Name: "bob", Password: []byte("!"), Crypted: true}); err != nil {
		t.Error(err)
	}
}

// Hashes that libxcrypt makes of the passwords and salts with which the description of the method is tested.
func TestHashesOfPasswords(t *testing.T) {
	const short = "we have a short salt string but not a short password"
	for text, password := range map[string]string{
		"$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5":                                                               "Hello world!",
		"$5$rounds=10000$saltstringsaltst$3xv.VbSHBb41AL9AvLeujZkZRBAwqFMz2.opqey6IcA":                                            "Hello world!",
		"$5$rounds=77777$short$JiO1O3ZpDAxGJeaDIuqCoEFysAe1mZNJRs3pw0KQRd/":                                                       short,
		"$6$rounds=77777$short$WuQyW2YR.hBNpjjRhpYD/ifIw05xdfeEyQoMxIXbkvr0gge1a1x3yRULJ5CCaUeOxFmtlcGZelFl5CxtgfiAc0":            short,
		"$6$rounds=10000$saltstringsaltst$OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy/YTBmSK6H9qs/y3RnOaw5v.": "Hello world!",
	} {
		s, ok := settingOf(text)
		if got, err := s.hash(t.Context(), []byte(password)); !ok || err != nil || got != text || !isHashOf(text, []byte(password)) {
			t.Errorf("%q becomes %s, not %s", password, got, text)
		}
	}
	for _, text := range []string{"", "!", "*", "x", "$6$", "$6$rounds=x$salt$", "$1$salt$x", "$6$rounds=999999999$salt$x", "$y$j9T$salt$x"} {
		if isHashOf(text, []byte("x")) {
			t.Errorf("%s is taken for a hash of x", text)
		}
	}
}

func TestHashesAreThoseOfOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("run it where there is openssl: ", err)
	}
	for i, m := range []method{sha512Crypt, sha256Crypt} {
		for _, length := range []int{1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 200} {
			password := strings.Repeat("pä:$0", 60)[:length]
			s := newSetting(m, 0)
			out, err := exec.Command("openssl", "passwd", "-"+strconv.Itoa(6-i), "-salt", s.salt, "--", password).Output()
			want := strings.TrimSpace(string(out))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := s.hash(t.Context(), []byte(password)); got != want || err != nil {
				t.Errorf("%d bytes: %s, not %s", length, got, want)
			}
			if !isHashOf(want, []byte(password)) || isHashOf(want, []byte(password+"x")) || isHashOf("!"+want, []byte(password)) {
				t.Errorf("%s is compared wrongly", want)
			}
		}
	}
}
