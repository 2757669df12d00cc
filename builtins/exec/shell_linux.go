package exec

// shellLine runs a line by the shell.
func shellLine(line string) []string { return []string{"/bin/sh", "-c", line} }
