package facts

// BootID is not known on Windows.
func BootID() string { return "" }
