package account

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"runtime"
	"strings"

	"github.com/go-crypt/x/yescrypt"
)

// Hashes of passwords by yescrypt, as libxcrypt makes them: $y$, the parameters, the salt and the digest.

const yescryptPrefix = "$y$"

const (
	// defaultCost is libxcrypt's default cost factor: a hash takes 16 MiB of memory.
	defaultCost = 5
	// mostCost is the highest that a password is hashed with here: 32 MiB, which is what a script may make the agent grow by. A
	// guest may want up to 11, which is 1 GiB.
	mostCost = 6
	// mostYescrypt is the memory in bytes that a password may need to be hashed, or compared with a hash.
	mostYescrypt = 32 << 20

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

// yescryptTurn has a place for one hash at a time: each needs memory.
var yescryptTurn = make(chan struct{}, 1)

// yescryptHash returns the text that stands for a password. Of the setting, which may be a hash, the digest does not matter. It
// waits until others are hashed, or ctx ends: one takes less than a second.
func yescryptHash(ctx context.Context, password []byte, setting string) (string, error) {
	if err := context.Cause(ctx); err != nil {
		return "", err
	}
	select {
	case yescryptTurn <- struct{}{}:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	defer func() {
		runtime.GC() // what it held is still counted when the next one begins
		<-yescryptTurn
	}()
	hash, err := yescrypt.Hash(password, []byte(setting))
	return string(hash), err
}

// yescryptMatches reports whether a hash by yescrypt is that of a password. One with parameters that libxcrypt does not make,
// or that needs too much memory, matches nothing.
func yescryptMatches(ctx context.Context, text string, password []byte) (bool, error) {
	params, rest, _ := strings.Cut(text[len(yescryptPrefix):], "$")
	_, log, r, err := yescrypt.DecodeSetting([]byte(params))
	if err != nil || log < 1 || log > 30 || r < 1 || 128*int64(r)<<log > mostYescrypt || strings.Count(rest, "$") != 1 {
		return false, nil
	}
	hash, err := yescryptHash(ctx, password, text)
	if err != nil {
		return false, context.Cause(ctx)
	}
	return subtle.ConstantTimeCompare([]byte(hash), []byte(text)) == 1, nil
}
