package exec

// shellLine runs a line by the command interpreter.
func shellLine(line string) []string { return []string{"cmd.exe", "/C", line} }
