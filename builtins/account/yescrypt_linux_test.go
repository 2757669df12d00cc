package account

import (
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Hashes by yescrypt are those that the C library makes, for each cost, and only the password is taken for what was hashed.
func TestYescryptIsThatOfTheLibrary(t *testing.T) {
	if !strings.HasPrefix(crypt(t, "x", "$y$j75$abcd"), yescryptPrefix) {
		t.Skip("run it where the C library knows yescrypt")
	}
	for cost, head := range map[int]string{
		-1: "$y$j9T$", 0: "$y$j9T$", 1: "$y$j75$", 2: "$y$j85$", 3: "$y$j7T$", 4: "$y$j8T$", 5: "$y$j9T$", 7: "$y$jAT$",
		11: "$y$jAT$", 12: "$y$j9T$",
	} {
		password := strings.Repeat("p:$0-", 60)[:20*(cost+2)-15]
		setting := newYescryptSetting(cost)
		if !strings.HasPrefix(setting, head) || setting == newYescryptSetting(cost) {
			t.Errorf("cost %d: %s", cost, setting)
		}
		got, err := yescryptHash(t.Context(), []byte(password), setting)
		if want := crypt(t, password, setting); err != nil || got != want {
			t.Errorf("cost %d: %s, %v, not %s", cost, got, err, want)
		}
		if !isHashOf(got, []byte(password)) || isHashOf(got, []byte(password+"x")) || isHashOf("!"+got, []byte(password)) ||
			isHashOf(got[:len(got)-1], []byte(password)) || isHashOf(got+"$x", []byte(password)) {
			t.Errorf("%s is compared wrongly", got)
		}
	}
	for _, salt := range []string{"z7", "z7ztFz2FayrKI79/jEwlL.", "$"} { // what others made, and what is none
		text := crypt(t, "secret", "$y$j75$"+salt)
		if strings.HasPrefix(text, yescryptPrefix) && !isHashOf(text, []byte("secret")) {
			t.Errorf("%s is not known", text)
		}
	}
}

// What is no hash, or one that would need a lot of memory, is nobody's password, and no end of the agent.
func TestYescryptOfOthers(t *testing.T) {
	const end = "$z7ztFz2FayrKI79/jEwlL.$u5x/j193MQ09wbFaRGYr0AH/A/jh3kunjuhYRVRNkmC"
	for _, text := range []string{
		"$y$", "$y$j", "$y$j9T", "$y$j9T$", "$y$j9T$$", "$y$$$", "$y$jzz" + end, "$y$jFT" + end, "$y$jCT" + end,
		"$y$j..$$x", "$y$j.." + end, "$y$x9T" + end, "$y$j\xff\xff" + end, "$y$j9T\x00" + end, "$y$j9T$\xff$x",
		"$y$jBT" + end, "$y$j/.5" + end, "$y$jD5.." + end,
	} {
		if isHashOf(text, []byte("x")) {
			t.Errorf("%q is taken for a hash of x", text)
		}
	}
}

// A guest that has chosen yescrypt gets it, and such a hash is known again when the guest has chosen another method since.
func TestYescryptIsKnownAgain(t *testing.T) {
	g := newTree(t, debian)
	g.put(loginDefs, "ENCRYPT_METHOD YESCRYPT\n")
	in := &pb.AccountPasswordArgs{Name: "bob", Password: []byte("secret")}
	g.sets("account.password", in)
	before := g.picture()
	g.put(loginDefs, "ENCRYPT_METHOD SHA512\n")
	in.Password = []byte("secret")
	if out, err := g.do("account.password", in); err != nil || out.(*pb.Changed).Changed {
		t.Error(out, err)
	}
	g.put(loginDefs, "ENCRYPT_METHOD YESCRYPT\n")
	if after := g.picture(); after != before {
		t.Errorf("it was\n%s\nand is\n%s", before, after)
	}
	in.Password = []byte("another")
	g.sets("account.password", in)
}
