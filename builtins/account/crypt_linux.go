package account

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"hash"
	"strconv"
	"strings"
)

// Hashes of passwords as crypt(3) makes them by SHA-256 and SHA-512, after Ulrich Drepper's public description of the
// method, "Unix crypt using SHA-256 and SHA-512".

// digits are those of crypt(3), the lowest first.
const digits = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

const (
	defaultRounds = 5000
	minRounds     = 1000
	maxRounds     = 999_999_999
	// mostRounds is the most that a password is hashed or compared with here: some seconds of work.
	mostRounds = 5_000_000
	saltDigits = 16 // what the method takes at most
)

// method is one of the two.
type method struct {
	prefix string
	sum    func() hash.Hash
	order  []byte // of the bytes of the digest in the text, three by three
}

var (
	sha512Crypt = method{"$6$", sha512.New, order(64, 21)}
	sha256Crypt = method{"$5$", sha256.New, order(32, 10)}
)

// order computes how the method permutes a digest: byte i stands with those a third and two thirds of the digest away, and
// which of the three comes first turns around from one group to the next.
func order(size, third int) (list []byte) {
	a, b, c := 0, third, 2*third
	for range third {
		list = append(list, byte(a), byte(b), byte(c))
		if size == 64 {
			a, b, c = b+1, c+1, a+1
		} else {
			a, b, c = c+1, a+1, b+1
		}
	}
	return list
}

// setting says how a password is hashed.
type setting struct {
	method method
	salt   string
	rounds int
	said   bool // the number of rounds is written down
}

// newSetting makes one with a random salt. 0 rounds are the number that is not written down.
func newSetting(m method, rounds int) setting {
	var random [saltDigits]byte
	_, _ = rand.Read(random[:]) // never fails: the runtime ends the process instead
	for i, b := range random {
		random[i] = digits[b&63]
	}
	s := setting{method: m, salt: string(random[:]), rounds: defaultRounds}
	if rounds > 0 {
		s.rounds, s.said = min(max(rounds, minRounds), mostRounds), true
	}
	return s
}

// settingOf reads the setting at the beginning of a hash.
func settingOf(text string) (s setting, ok bool) {
	switch {
	case strings.HasPrefix(text, sha512Crypt.prefix):
		s.method = sha512Crypt
	case strings.HasPrefix(text, sha256Crypt.prefix):
		s.method = sha256Crypt
	default:
		return s, false
	}
	rest := text[len(s.method.prefix):]
	s.rounds = defaultRounds
	if number, more, found := strings.Cut(rest, "$"); found && strings.HasPrefix(number, "rounds=") {
		n, err := strconv.Atoi(number[len("rounds="):])
		if err != nil {
			return s, false
		}
		s.rounds, s.said, rest = min(max(n, minRounds), maxRounds), true, more
	}
	s.salt, _, _ = strings.Cut(rest, "$")
	s.salt = s.salt[:min(len(s.salt), saltDigits)]
	return s, true
}

// matches reports whether a hash is that of a password. Hashes of other methods than yescrypt and these two match nothing. The
// error is the cause of ctx.
func matches(ctx context.Context, text string, password []byte) (bool, error) {
	if strings.HasPrefix(text, yescryptPrefix) {
		return yescryptMatches(ctx, text, password)
	}
	s, ok := settingOf(text)
	if !ok || s.rounds > mostRounds {
		return false, nil
	}
	hash, err := s.hash(ctx, password)
	return err == nil && subtle.ConstantTimeCompare([]byte(hash), []byte(text)) == 1, err
}

// roundsAtOnce is how many rounds there are between two checks of the context: some milliseconds.
const roundsAtOnce = 4096

// hash returns the text that stands for a password. The error is the cause of ctx.
func (s setting) hash(ctx context.Context, password []byte) (string, error) {
	h, salt := s.method.sum(), []byte(s.salt)
	size := h.Size()
	sum := func(parts ...[]byte) []byte {
		h.Reset()
		for _, p := range parts {
			h.Write(p)
		}
		return h.Sum(nil)
	}
	// stretch repeats a digest until it is n bytes.
	stretch := func(block []byte, n int) (out []byte) {
		for ; n > size; n -= size {
			out = append(out, block...)
		}
		return append(out, block[:n]...)
	}
	b := sum(password, salt, password)
	parts := [][]byte{password, salt, stretch(b, len(password))}
	for n := len(password); n > 0; n >>= 1 {
		if n&1 != 0 {
			parts = append(parts, b)
		} else {
			parts = append(parts, password)
		}
	}
	a := sum(parts...)
	p := stretch(sum(repeated(password, len(password))...), len(password))
	defer clear(p)
	saltSum := stretch(sum(repeated(salt, 16+int(a[0]))...), len(salt))
	defer clear(b)
	for round := range s.rounds {
		if round%roundsAtOnce == 0 && ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		h.Reset()
		first, last := a, p
		if round%2 != 0 {
			first, last = p, a
		}
		h.Write(first)
		if round%3 != 0 {
			h.Write(saltSum)
		}
		if round%7 != 0 {
			h.Write(p)
		}
		h.Write(last)
		a = h.Sum(a[:0:0])
	}
	return s.head() + s.method.encode(a), nil
}

func (s setting) head() string {
	head := s.method.prefix
	if s.said {
		head += "rounds=" + strconv.Itoa(s.rounds) + "$"
	}
	return head + s.salt + "$"
}

func repeated(block []byte, n int) (list [][]byte) {
	for range n {
		list = append(list, block)
	}
	return list
}

// encode writes a digest with six bits to a digit.
func (m method) encode(digest []byte) string {
	var out strings.Builder
	put := func(value uint32, n int) {
		for range n {
			out.WriteByte(digits[value&63])
			value >>= 6
		}
	}
	for i := 0; i < len(m.order); i += 3 {
		put(uint32(digest[m.order[i]])<<16|uint32(digest[m.order[i+1]])<<8|uint32(digest[m.order[i+2]]), 4)
	}
	if len(digest) == 64 {
		put(uint32(digest[63]), 2)
	} else {
		put(uint32(digest[31])<<8|uint32(digest[30]), 3)
	}
	return out.String()
}
