//go:build !windows

package main

import "os"

// understandsEscapes reports whether a terminal understands escape sequences: all do.
func understandsEscapes(*os.File) bool { return true }
