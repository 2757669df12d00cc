package main

// hostFirstBoot adds nothing: what a host gives is read on Linux alone.
func hostFirstBoot([]string, map[string]firstBootText, map[string]map[string]any) error { return nil }
