package account

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// The lines of authorized_keys, as sshd(8) describes them.

const (
	maxKey = 16 << 10  // bytes of a line: a key of RSA with 16,384 bits has 3 KiB
	minRSA = 1024 / 8  // bytes of the modulus that sshd accepts
	maxRSA = 16384 / 8 // the same
)

// keyTypes are the types of keys, by how many fields the blob has after the type.
var keyTypes = map[string]int{
	"ssh-ed25519": 1, "ssh-rsa": 2,
	"ecdsa-sha2-nistp256": 2, "ecdsa-sha2-nistp384": 2, "ecdsa-sha2-nistp521": 2,
	"sk-ssh-ed25519@openssh.com": 2, "sk-ecdsa-sha2-nistp256@openssh.com": 3,
}

// encodedLength is what the base64 of every key begins with: its first field, the type, is shorter than 64 KiB.
const encodedLength = "AAAA"

// key is a line of authorized_keys.
type key struct{ options, kind, blob, comment string }

func (k *key) line() string {
	return strings.TrimSpace(strings.Join([]string{k.options, k.kind, k.blob, k.comment}, " "))
}

// parseKey reads a line; nil where it is empty or a comment.
func parseKey(line string) (*key, error) {
	line = strings.Trim(line, " \t\r\n")
	switch {
	case line == "" || line[0] == '#':
		return nil, nil
	case len(line) > maxKey:
		return nil, fault.Wrapf(fault.ErrTooLarge, "the key has more than %d bytes", maxKey)
	case strings.Contains(line, "\n"):
		return nil, fault.Invalid("a key is one line; give several as several")
	case !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return r != '\t' && unicode.IsControl(r) }):
		return nil, fault.Invalid("the key has a control character, or what is not UTF-8")
	}
	k := &key{}
	first, rest := word(line)
	if _, known := keyTypes[first]; !known {
		if k.options, rest = options(line); rest == "" {
			return nil, fault.Invalid("%.40q is neither the type of a key nor its options", first)
		}
		if strings.HasPrefix(rest, encodedLength) {
			return nil, fault.Invalid("%.40q is no type of a key that sshd takes here", first)
		}
		first, rest = word(rest)
	}
	k.kind = first
	k.blob, k.comment = word(rest)
	fields, known := keyTypes[k.kind]
	if !known {
		return nil, fault.Invalid("%.40q is no type of a key", k.kind)
	}
	return k, checkBlob(k.kind, k.blob, fields)
}

// keyOptions are the options of a key that sshd(8) knows, in lower case, and whether they have a value.
var keyOptions = map[string]bool{
	"agent-forwarding": false, "port-forwarding": false, "pty": false, "user-rc": false, "x11-forwarding": false,
	"touch-required": false, "no-agent-forwarding": false, "no-port-forwarding": false, "no-pty": false, "no-user-rc": false,
	"no-x11-forwarding": false, "no-touch-required": false, "verify-required": false, "no-verify-required": false,
	"restrict": false, "cert-authority": false,
	"command": true, "environment": true, "expiry-time": true, "from": true, "permitlisten": true, "permitopen": true,
	"principals": true, "tunnel": true,
}

// keyOption is the first option of several.
var keyOption = lazyregexp.New(`^([A-Za-z0-9-]+)(="(?:\\"|[^"])*")?(,|$)`)

// takenKey reads a line as sshd does, which skips one with options that it does not know.
func takenKey(line string) (*key, error) {
	k, err := parseKey(line)
	if err == nil && k != nil {
		err = checkOptions(k.options)
	}
	return k, err
}

// checkOptions refuses options that sshd does not know.
func checkOptions(text string) error {
	for rest := text; rest != ""; {
		option := keyOption().FindStringSubmatch(rest)
		if option == nil {
			return fault.Invalid("%.40q are no options of a key", rest)
		}
		valued, known := keyOptions[strings.ToLower(option[1])]
		if rest = rest[len(option[0]):]; !known || valued != (option[2] != "") || rest == "" && option[3] != "" {
			return fault.Invalid("%.40q is no option of a key", option[0])
		}
	}
	return nil
}

// word cuts the first word off a line.
func word(line string) (first, rest string) {
	at := strings.IndexAny(line, " \t")
	if at < 0 {
		return line, ""
	}
	return line[:at], strings.TrimLeft(line[at:], " \t")
}

// options cuts the options off a line, in whose quotes there may be blanks.
func options(line string) (first, rest string) {
	quoted := false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && quoted && i+1 < len(line) && line[i+1] == '"':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ' ' || c == '\t'):
			return line[:i], strings.TrimLeft(line[i:], " \t")
		}
	}
	return line, ""
}

// checkBlob refuses what is not the key that its type says: sshd would skip the line, and nobody would know why.
func checkBlob(kind, text string, count int) error {
	blob, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return fault.Invalid("the key of type %s is not base64", kind)
	}
	var fields [][]byte
	for len(blob) >= 4 {
		n := binary.BigEndian.Uint32(blob)
		if uint64(n) > uint64(len(blob)-4) {
			break
		}
		fields, blob = append(fields, blob[4:4+n]), blob[4+n:]
	}
	wrong := fault.Invalid("the base64 of a key of type %s is not such a key, or not all of it", kind)
	if len(blob) != 0 || len(fields) != count+1 || string(fields[0]) != kind {
		return wrong
	}
	switch last := fields[len(fields)-1]; {
	case kind == "ssh-ed25519" && len(last) != 32, strings.HasPrefix(kind, "sk-ssh-ed25519") && len(fields[1]) != 32:
		return wrong
	case kind == "ssh-rsa":
		if n := len(bytes.TrimLeft(last, "\x00")); n < minRSA || n > maxRSA || len(fields[1]) == 0 {
			return fault.Invalid("a key of RSA has %d bits, and must have %d to %d", n*8, minRSA*8, maxRSA*8)
		}
	case strings.Contains(kind, "ecdsa"):
		curve := kind[strings.LastIndex(kind, "nistp"):]
		if curve, _, _ = strings.Cut(curve, "@"); string(fields[1]) != curve || len(fields[2]) < 65 || fields[2][0] != 4 {
			return wrong
		}
	}
	return nil
}
