package main

// stderrIsJournal reports false: there is no systemd.
func stderrIsJournal() bool { return false }
