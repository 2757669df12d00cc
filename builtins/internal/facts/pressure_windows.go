package facts

// ReadPressure returns nil: Windows does not tell.
func ReadPressure(string) *Pressure { return nil }
