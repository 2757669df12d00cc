package core

// checkOwners returns nil: below ProgramData others may write only what they made.
func checkOwners(state, root string) error { return nil }
