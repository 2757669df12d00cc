//go:build !linux

package main

func stderrIsJournal() bool { return false }
