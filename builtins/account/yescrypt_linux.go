package account

import (
	"crypto/rand"
	"crypto/subtle"
	"strings"
	"sync"

	"github.com/go-crypt/x/yescrypt"
)

// Hashes of passwords by yescrypt, as libxcrypt makes them: $y$, the parameters, the salt and the digest.

const yescryptPrefix = "$y$"

const (
	// defaultCost is libxcrypt's default cost factor: a hash takes 16 MiB of memory.
	defaultCost = 5
	// mostCost is the highest that a password is hashed with here: 64 MiB. A guest may want up to 11, which is 1 GiB.
	mostCost = 7
	// mostYescrypt is the memory in bytes that a password may need to be compared with a hash.
	mostYescrypt = 64 << 20

	yescryptSalt = 16 // bytes
)

// newYescryptSetting makes what a hash begins with, with a random salt. A cost that is no factor of libxcrypt is the default.
func newYescryptSetting(cost int) string {
	if cost < 1 || cost > 11 {
		cost = defaultCost
	}
	// The factor says how many blocks of 128 bytes times r there are, as a power of two: see crypt(5).
	cost = min(cost, mostCost)
	log, r := cost+7, 32
	if cost < 3 {
		log, r = cost+9, 8
	}
	var salt [yescryptSalt]byte
	_, _ = rand.Read(salt[:]) // never fails: the runtime ends the process instead
	return yescryptPrefix + string(yescrypt.EncodeSetting(0, log, r)) + "$" + string(yescrypt.Encode64(salt[:]))
}

// yescryptTurn is for one hash at a time: each needs memory.
var yescryptTurn sync.Mutex

// yescryptHash returns the text that stands for a password. Of the setting, which may be a hash, the digest does not matter.
func yescryptHash(password []byte, setting string) (string, error) {
	yescryptTurn.Lock()
	defer yescryptTurn.Unlock()
	hash, err := yescrypt.Hash(password, []byte(setting))
	return string(hash), err
}

// yescryptMatches says whether a hash by yescrypt is that of a password. One with parameters that libxcrypt does not make, or
// that needs too much memory, matches nothing.
func yescryptMatches(text string, password []byte) bool {
	params, rest, _ := strings.Cut(text[len(yescryptPrefix):], "$")
	_, log, r, err := yescrypt.DecodeSetting([]byte(params))
	if err != nil || log < 1 || log > 30 || r < 1 || 128*int64(r)<<log > mostYescrypt || strings.Count(rest, "$") != 1 {
		return false
	}
	hash, err := yescryptHash(password, text)
	return err == nil && subtle.ConstantTimeCompare([]byte(hash), []byte(text)) == 1
}
