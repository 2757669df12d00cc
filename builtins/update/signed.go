package update

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"strings"

	"aead.dev/minisign"
	"golang.org/x/mod/semver"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	maxVersion   = 64   // bytes of a version
	maxSignature = 4096 // bytes of a signature, which has four lines
)

// signed is a signature, and what its trusted comment says. Nothing of it is to be believed before verify.
type signed struct {
	key               minisign.PublicKey
	text              []byte
	version, platform string
}

// parseSignature reads a file of minisign.
func parseSignature(key minisign.PublicKey, file []byte) (*signed, error) {
	switch {
	case len(file) == 0:
		return nil, fault.Refuse("the program is not signed")
	case len(file) > maxSignature:
		return nil, fault.Refuse("the signature has %d bytes, at most %d are read", len(file), maxSignature)
	}
	var s minisign.Signature
	if err := s.UnmarshalText(file); err != nil {
		return nil, fault.Refuse("the signature is no file of minisign")
	}
	switch {
	case s.KeyID != key.ID():
		return nil, fault.Refuse("the signature is by the key %X, and %X is trusted", s.KeyID, key.ID())
	case s.Algorithm != minisign.HashEdDSA:
		return nil, fault.Refuse("the signature is of minisign's old kind: sign without -l")
	}
	out := &signed{key: key, text: file}
	for word := range strings.FieldsSeq(s.TrustedComment) {
		name, value, _ := strings.Cut(word, ":")
		field := map[string]*string{"version": &out.version, "platform": &out.platform}[name]
		switch {
		case field == nil: // minisign's own words
		case *field != "":
			return nil, fault.Refuse("the trusted comment of the signature has two words for the %s", name)
		default:
			*field = value
		}
	}
	if out.version == "" || out.platform == "" {
		return nil, fault.Refuse("the trusted comment of the signature lacks version:… or platform:…")
	}
	return out, nil
}

const whenDowngraded = "a downgrade must be requested, and allowed by update.allow_downgrade in agent.yaml"

// allows returns why what is signed is not what is asked for, or may not be installed over the present version.
func (s *signed) allows(version, present string, downgrade bool) error {
	switch {
	case s.version != version:
		return fault.Refuse("the signature is for version %s, and %s was announced", short(s.version), short(version))
	case s.platform != platform():
		return fault.Refuse("the program is for %s, and this is %s", short(s.platform), platform())
	case downgrade:
		return nil
	case checkVersion(present) != nil:
		return fault.Refuse("the present version %q cannot be compared with %s: %s", present, version, whenDowngraded)
	case semver.Compare("v"+version, "v"+present) < 0:
		return fault.Refuse("version %s is older than the present %s: %s", version, present, whenDowngraded)
	}
	return nil
}

// verify reads the program as it will run, and checks its signature and its SHA-256 against it.
func (s *signed) verify(program io.Reader, sum string) error {
	hash := sha256.New()
	reader := minisign.NewReader(io.TeeReader(program, hash))
	if _, err := io.Copy(io.Discard, reader); err != nil {
		return fault.Cause(err)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != sum {
		return fault.Wrapf(fault.ErrCorrupt, "the SHA-256 of the program is %s, and %s was announced", got, sum)
	}
	if !reader.Verify(s.key, s.text) {
		return fault.Refuse("the signature is not of this program")
	}
	return nil
}

// checkVersion refuses what is no version of three numbers, as semantic versions are: 1.2.3, 1.2.3-rc.1, 1.2.3+build.
func checkVersion(version string) error {
	plain, _, _ := strings.Cut(version, "+")
	if len(version) > maxVersion || !semver.IsValid("v"+version) || semver.Canonical("v"+version) != "v"+plain {
		return fault.Invalid("%s is no version such as 1.2.3 or 1.2.3-rc.1", short(version))
	}
	return nil
}
