package account

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

const (
	sshdConfig  = "/etc/ssh/sshd_config" // else that of the distribution, below vendorDir
	sshdDir     = "/etc/ssh"             // where the names of Include begin
	maxIncludes = 16                     // how deep sshd includes files
	maxIncluded = 1000                   // files in a directory that are looked at, and all that are read
)

// readsKeys refuses a user whose keys sshd reads from other files than the one in the home directory (AuthorizedKeysFile of
// sshd_config(5)): keys written here would have no effect, and keys read here would be the wrong ones. Match blocks are ignored.
func readsKeys(root *fsys.Root, u *user) error {
	rest := maxIncluded
	config := sshdConfig
	if _, err := root.ReadFile(config, maxDefaults); errors.Is(err, fs.ErrNotExist) {
		config = vendorDir + sshdConfig
	}
	where, files := keysSetting(root, config, 0, &rest)
	ours := fsys.Join(u.home, keysFile)
	replace := strings.NewReplacer("%%", "%", "%h", u.home, "%u", u.name, "%U", formatID(u.uid))
	if where == "" || slices.ContainsFunc(files, func(file string) bool {
		if file = replace.Replace(file); !fsys.IsAbs(file) {
			file = fsys.Join(u.home, file)
		}
		return fsys.Clean(file) == ours
	}) {
		return nil
	}
	return fault.On(where, fault.Refuse("sshd reads keys from %s, and not from %s", strings.Join(files, " "), ours))
}

// keysSetting returns the first setting of AuthorizedKeysFile before a Match block, and the file that it is in; empty: there is
// none. Of files that include each other no more than rest are read.
func keysSetting(root *fsys.Root, file string, depth int, rest *int) (where string, files []string) {
	if *rest--; *rest < 0 || depth > maxIncludes {
		return "", nil
	}
	text, err := root.ReadFile(file, maxDefaults)
	if err != nil {
		return "", nil
	}
	for line := range strings.Lines(string(text)) {
		setting := sshdLine().FindStringSubmatch(line)
		if setting == nil {
			continue
		}
		words := strings.Fields(strings.ReplaceAll(setting[2], `"`, " "))
		if at := slices.IndexFunc(words, func(word string) bool { return word[0] == '#' }); at >= 0 {
			words = words[:at]
		}
		switch strings.ToLower(setting[1]) {
		case "match":
			return "", nil
		case "authorizedkeysfile":
			return file, words
		case "include":
			for _, pattern := range words {
				for _, other := range included(root, pattern) {
					if where, files := keysSetting(root, other, depth+1, rest); where != "" {
						return where, files
					}
				}
			}
		}
	}
	return "", nil
}

// sshdLine is a line with a keyword and its arguments.
var sshdLine = lazyregexp.New(`^\s*"?([A-Za-z]+)"?(?:\s*=\s*|\s+|")(.*\S)`)

// included are the files that Include names, where only the last element of the path is a pattern.
func included(root *fsys.Root, pattern string) (files []string) {
	if !fsys.IsAbs(pattern) {
		pattern = fsys.Join(sshdDir, pattern)
	}
	parent, base := fsys.Parent(pattern), fsys.Base(pattern)
	dir, err := openDir(root, parent)
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Names(maxIncluded)
	slices.Sort(names)
	for _, name := range names {
		if ok, err := path.Match(base, name); ok && err == nil && (name[0] != '.' || base[0] == '.') {
			files = append(files, fsys.Join(parent, name))
		}
	}
	return files
}
