package proc

// Mount is a mount of a file system in the agent's mount namespace.
type Mount struct {
	// Device is the file system's device number, as "major:minor".
	Device string
	// Point is where it is mounted, and Type the type of the file system.
	Point, Type string
}
