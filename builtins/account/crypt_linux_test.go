package account

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

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
		if got := s.hash([]byte(password)); !ok || got != text || !matches(text, []byte(password)) {
			t.Errorf("%q becomes %s, not %s", password, got, text)
		}
	}
	for _, text := range []string{"", "!", "*", "x", "$6$", "$6$rounds=x$salt$", "$1$salt$x", "$6$rounds=999999999$salt$x", "$y$j9T$salt$x"} {
		if matches(text, []byte("x")) {
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
			if got := s.hash([]byte(password)); got != want {
				t.Errorf("%d bytes: %s, not %s", length, got, want)
			}
			if !matches(want, []byte(password)) || matches(want, []byte(password+"x")) || matches("!"+want, []byte(password)) {
				t.Errorf("%s is compared wrongly", want)
			}
		}
	}
}
