// Package txtest has what rooms' tests put in the place of a transaction.
//
// Not here: the transaction itself, which is runtime/journal's, and which the agent's own tests use.
package txtest

import (
	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// Kept is builtins.Tx.Kept of a transaction that kept what is at a resolved path below dir now; false: it cannot be looked at.
func Kept(dir, path string) (builtins.Touched, bool) {
	root, err := fsys.Open(dir)
	if err != nil {
		return builtins.Touched{}, false
	}
	defer root.Close()
	at, err := root.Exact(path)
	if err != nil {
		return builtins.Touched{}, false
	}
	defer at.Close()
	is, err := at.Capture()
	if err != nil {
		return builtins.Touched{}, false
	}
	above, err := at.StatDir()
	return builtins.Touched{Path: path, Ino: is.Ino, Dir: above.Ino}, err == nil
}
