//go:build !linux

package main

import "time"

// monotonic is asked by systemd alone.
func monotonic() time.Duration { return 0 }
