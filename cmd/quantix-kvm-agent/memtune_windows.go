package main

// dropStartPages does nothing: Windows trims working sets itself.
func dropStartPages() {}

// memoryLock does nothing: nothing is frozen on Windows yet.
type memoryLock struct{}

func (*memoryLock) set(bool) {}
