package fsys

func isSeparator(c byte) bool { return c == '/' }

// wildcards are what patterns have besides names: "\" takes the meaning from the one after it.
const wildcards = `*?[\`

// fold returns the form of a path in which equal paths are equal texts, with slashes of one kind.
func fold(path string) string { return path }

// checkSystemPath has nothing to refuse: a name may be any bytes.
func checkSystemPath(string) error { return nil }
