package fsys

import "os"

// pin is for systems where a directory is known by its path.
type pin struct{}

func (*pin) set(handle) error { return nil }

func (*pin) close() error { return nil }

func (*pin) leads(handle) error { return nil }

func (*pin) holds(handle, *os.File) error { return nil }
