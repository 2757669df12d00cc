package fsys

// SameMount says whether what is at one place can be renamed to the other, and linked there.
func SameMount(a, b *At) (bool, error) { return sameMount(a.dir, b.dir) }

// Link gives the object here, which is no directory, another name. Nothing may be there.
func (a *At) Link(to *At) error { return linkAt(a.dir, a.Name, to.dir, to.Name) }

// SyncAll makes durable all of the file system that the root directory is on, also what others wrote. Mounts below it are
// left out: one of them may be a server that does not answer.
func (r *Root) SyncAll() error { return syncAll(r.handle) }

// Pseudo says whether the place is on a file system that keeps nothing, such as /proc or /sys: a file there is a setting
// of the kernel, and times mean nothing.
func (a *At) Pseudo() (bool, error) { return pseudo(a.dir) }
