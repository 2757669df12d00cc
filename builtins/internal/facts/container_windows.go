package facts

// ContainerKind returns "": containers of Windows are not known.
func ContainerKind() string { return "" }

// GuestCgroup returns "": Windows has no control groups.
func GuestCgroup() string { return "" }

// ReadLimits returns none.
func ReadLimits(string) Limits { return Limits{} }
