package netplan

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// What all files have together, all of which are in memory when one is checked: some thousand interfaces.
const (
	maxText   = 1 << 20
	maxValues = 60_000
	valueSize = 200 // bytes in memory of one, by yaml.Node
)

// bounds are what is left of the bounds of all files together.
type bounds struct {
	bytes, values int
	asked         int64 // of builtins.Large
}

// take takes what a file has, before it is parsed.
func (b *bounds) take(ctx context.Context, text []byte) error {
	b.bytes -= len(text)
	if b.bytes < 0 {
		return fault.Wrapf(fault.ErrTooLarge, "netplan's files have more than %d bytes together", maxText)
	}
	n := values(text)
	if b.values -= n; b.values < 0 {
		return fault.Wrapf(fault.ErrTooLarge, "netplan's files have more than %d values together", maxValues)
	}
	b.asked += int64(len(text) + n*valueSize)
	return builtins.Large(ctx, b.asked)
}

// values returns how many keys and values a YAML text has at most, by what stands between them.
func values(text []byte) (count int) {
	for i, c := range text {
		switch c {
		case ',', '[', '{':
			count += 2
		case '\n':
			count++
		case ':', '-', '?':
			if i+1 == len(text) || text[i+1] <= ' ' {
				count++
			}
		}
	}
	return count
}
