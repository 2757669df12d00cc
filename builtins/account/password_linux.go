package account

import (
	"bytes"
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// pamFiles are where distributions say how passwords are hashed, the common ones first.
var pamFiles = []string{
	"/etc/pam.d/common-password", "/etc/pam.d/system-auth", "/etc/pam.d/password-auth", "/etc/pam.d/base-password",
	"/etc/pam.d/passwd", "/usr/lib/pam.d/common-password",
}

// newPassword is a password on its way into the files.
type newPassword struct {
	name    string
	secret  []byte
	crypted bool
	// expire reports whether the user must choose another one; nil: need not if this one is new.
	expire *bool
	// again says that it is set also where it is the one that is there.
	again bool

	hash string // of secret, made once
}

func (r *Room) password(ctx context.Context, call *builtins.Call, in *pb.AccountPasswordArgs) (*pb.Changed, error) {
	defer clear(in.Password)
	return r.setPassword(ctx, call, "account.password", &newPassword{
		name: in.Name, secret: in.Password, crypted: in.Crypted, expire: in.Expire,
	})
}

func (r *Room) resetPassword(
	ctx context.Context, call *builtins.Call, in *pb.ResetPasswordRequest,
) (*pb.ResetPasswordResponse, error) {
	secret := []byte(in.NewPassword)
	defer clear(secret)
	n := &newPassword{name: in.Username, secret: secret, crypted: in.Crypted, expire: &in.Expire, again: true}
	if _, err := r.setPassword(ctx, call, "reset_password", n); err != nil {
		return nil, err
	}
	expired, err := r.mustChange(call, in.Username)
	if err != nil {
		return nil, fault.On(in.Username, err)
	}
	return &pb.ResetPasswordResponse{Success: true, MustChange: expired}, nil
}

// mustChange reads whether a user must choose another password at the next login.
func (r *Room) mustChange(call *builtins.Call, name string) (bool, error) {
	root, err := r.files(call)
	if err != nil {
		return false, err
	}
	shadow, err := readRecords(root, shadowFile)
	if err != nil {
		return false, err
	}
	line, at, err := shadow.find(name, 9)
	return at >= 0 && line[2] == expiredDay, err
}

// expiredDay in the field of the last change says that the password must be changed.
const expiredDay = "0"

func (r *Room) setPassword(ctx context.Context, call *builtins.Call, op string, n *newPassword) (*pb.Changed, error) {
	if err := checkName(n.name); err != nil {
		return nil, fault.On(printable(n.name), err)
	}
	if err := checkPassword(n.secret, n.crypted); err != nil {
		return nil, fault.On(printable(n.name), err)
	}
	if !n.crypted { // before the files are locked: whoever holds that memory may wait for the lock
		if err := builtins.Large(ctx, mostYescrypt); err != nil {
			return nil, err
		}
	}
	return r.change(ctx, call, op, n.name, func(root *fsys.Root, p *plan) error {
		u, err := p.existing(n.name)
		if err != nil {
			return err
		}
		return p.setPassword(ctx, root, u, n)
	})
}

func (p *plan) setPassword(ctx context.Context, root *fsys.Root, u *user, n *newPassword) error {
	if p.db.shadow.absent {
		if n.expire != nil && *n.expire {
			return fault.Unsupported("there is no %s, so no password can expire", shadowFile)
		}
		hash, err := n.instead(ctx, u.password, root, p.defaults)
		if err == nil && hash != "" {
			u.password = hash
			p.db.putUser(u)
		}
		return err
	}
	line, at, err := p.db.shadow.find(u.name, 9)
	if err != nil {
		return err
	}
	if at < 0 {
		if err := p.newShadow(u.name, "!", false); err != nil {
			return err
		}
		if line, at, err = p.db.shadow.find(u.name, 9); err != nil {
			return err
		}
	}
	hash, err := n.instead(ctx, line[1], root, p.defaults)
	if err != nil {
		return err
	}
	if hash != "" {
		line[1] = hash
		line[2] = strconv.FormatInt(p.today, 10)
	}
	if n.expire != nil && *n.expire != (line[2] == expiredDay) {
		line[2] = strconv.FormatInt(p.today, 10)
		if *n.expire {
			line[2] = expiredDay
		}
	}
	p.db.shadow.put(at, line...)
	if u.password != "x" { // else what is in passwd itself would count
		u.password = "x"
		p.db.putUser(u)
	}
	return nil
}

// instead returns what takes the place of what is stored; empty: that is this password already, and stays.
func (n *newPassword) instead(ctx context.Context, stored string, root *fsys.Root, d defaults) (hash string, err error) {
	if !n.again {
		if same, err := n.is(ctx, stored); same || err != nil {
			return "", err
		}
	}
	switch {
	case n.crypted:
		return string(n.secret), nil
	case n.hash == "":
		n.hash, err = d.newHash(ctx, root, n.secret)
	}
	return n.hash, err
}

// is reports whether what is stored is this password.
func (n *newPassword) is(ctx context.Context, stored string) (bool, error) {
	if n.crypted {
		return stored == string(n.secret), nil
	}
	return matches(ctx, stored, n.secret)
}

// newHash hashes a password as this guest does: as PAM does or else as login.defs says, if that is by yescrypt, SHA-256 or
// SHA-512. The C libraries of all supported guests know SHA-512, so that stands for all other methods.
func (d defaults) newHash(ctx context.Context, root *fsys.Root, password []byte) (string, error) {
	words, ok := pamWords(root)
	if !ok {
		words = []string{strings.ToLower(d.login["ENCRYPT_METHOD"])}
		if n := max(d.number("SHA_CRYPT_MIN_ROUNDS", 0), d.number("SHA_CRYPT_MAX_ROUNDS", 0)); n > 0 {
			words = append(words, "rounds="+strconv.FormatInt(n, 10))
		}
		if words[0] == "yescrypt" {
			words = []string{words[0], "rounds=" + strconv.FormatInt(d.number("YESCRYPT_COST_FACTOR", 0), 10)}
		}
	}
	m, sha, yes, rounds := sha512Crypt, false, false, 0
	for _, word := range words {
		switch word {
		case "sha256":
			m, sha = sha256Crypt, true
		case "sha512":
			sha = true
		case "yescrypt":
			yes = true
		}
		if text, ok := strings.CutPrefix(word, "rounds="); ok {
			rounds, _ = strconv.Atoi(text)
		}
	}
	if yes && !sha {
		return yescryptHash(ctx, password, newYescryptSetting(rounds))
	}
	if !sha {
		rounds = 0 // of another method, where they are something else
	}
	return newSetting(m, rounds).hash(ctx, password)
}

// pamWords are the arguments of pam_unix for passwords. ok: there are some.
func pamWords(root *fsys.Root) (words []string, ok bool) {
	for _, path := range pamFiles {
		data, err := root.ReadFile(path, maxDefaults)
		if err != nil {
			continue
		}
		for line := range bytes.Lines(data) {
			words := strings.Fields(string(line))
			if len(words) == 0 || strings.TrimPrefix(words[0], "-") != "password" {
				continue
			}
			if i := slices.IndexFunc(words, func(w string) bool { return strings.HasSuffix(w, "pam_unix.so") }); i >= 0 {
				return words[i+1:], true
			}
		}
	}
	return nil, false
}
