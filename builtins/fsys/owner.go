package fsys

import (
	"os"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// A user who can make files in a directory may make one first, where he expects the agent to write: in /tmp, in a
// spool, at home. What replaces it with its owner and mode would be his, and what is written into it he reads and
// changes through a descriptor that he has kept open. The kernel guards open(O_CREAT) against that in sticky
// directories (fs.protected_regular), and not rename.

// Trusted reports whether what is here, old, is known not to have been put here by another user than the agent's and
// owner, who shall own what takes its place; nil: that was not said. What is not trusted is replaced as if nothing were
// here, and neither written in place nor taken for what was wanted. In a directory that is another user's own the error
// refuses: only the caller can say whose the file shall be.
func (a *At) Trusted(old Meta, owner *uint32) (bool, error) {
	if old.Kind == Absent || TrustedUser(old.UID) || owner != nil && *owner == old.UID {
		return true, nil
	}
	if pseudo, err := a.dir.pseudo(); pseudo || err != nil {
		return true, err // the kernel makes what is there, as in /proc/PID
	}
	dir, err := a.dir.stat(".")
	switch {
	case err != nil:
		return false, err
	case !TrustedUser(dir.UID) && owner == nil:
		return false, &fault.Error{
			Err:  fault.Refuse("it belongs to user %d, in a directory of user %d", old.UID, dir.UID),
			Hint: "say whose it shall be: the owner",
		}
	}
	const others = 0o022
	return TrustedUser(dir.UID) && dir.Mode&others == 0, nil
}

// TrustedUser reports whether a user can do what the agent can anyway: root, or the agent's own.
func TrustedUser(uid uint32) bool { return uid == 0 || uid == uint32(os.Geteuid()) }
