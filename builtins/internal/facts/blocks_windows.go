package facts

// BlockDevices returns none: they are not read on Windows.
func BlockDevices() []BlockDevice { return nil }
