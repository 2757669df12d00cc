package core

import "io/fs"

// checkOwners returns nil: below ProgramData others may write only what they made.
func checkOwners(state, root string) error { return nil }

// WhyUntrusted returns "", for the same reason.
func WhyUntrusted(fs.FileInfo) string { return "" }
