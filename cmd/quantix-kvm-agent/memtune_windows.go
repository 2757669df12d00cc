package main

// dropStartPages does nothing: Windows trims working sets itself.
func dropStartPages() {}
