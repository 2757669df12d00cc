package proc

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// The directories in /run that services need are made when they start, or at boot. A program that looks at a service's
// configuration, such as sshd -t, misses them in an image, or where the service was never started.

// Where units and tmpfiles.d are.
var (
	unitPatterns     = []string{"/usr/lib/systemd/system/*.service", "/lib/systemd/system/*.service", "/etc/systemd/system/*.service"}
	tmpfilesPatterns = []string{"/usr/lib/tmpfiles.d/*.conf", "/etc/tmpfiles.d/*.conf"}
)

// runtimeDir is a directory in /run.
type runtimeDir struct {
	path        string
	mode        uint32
	user, group string
}

// makeRuntimeDirs makes the directories in /run that services have, as far as they are missing. It is best effort: the
// program that misses one says so.
func makeRuntimeDirs() {
	dirs := []runtimeDir{{path: "/run/lock", mode: 0o1777}} // also /var/lock
	for _, file := range globAll(unitPatterns) {
		if !strings.Contains(filepath.Base(file), "@") { // of which no instance is known
			dirs = append(dirs, unitDirs(file)...)
		}
	}
	for _, file := range globAll(tmpfilesPatterns) {
		dirs = append(dirs, tmpfilesDirs(file)...)
	}
	users, groups := idsOf("/etc/passwd"), idsOf("/etc/group")
	for _, d := range dirs {
		if d.path = filepath.Clean(d.path); !strings.HasPrefix(d.path, "/run/") || strings.Contains(d.path, "%") {
			continue
		}
		if _, err := os.Lstat(d.path); err == nil || os.MkdirAll(d.path, 0o755) != nil {
			continue
		}
		_ = os.Lchown(d.path, users[d.user], groups[d.group])
		_ = syscall.Chmod(d.path, d.mode)
	}
}

func globAll(patterns []string) (files []string) {
	seen := map[string]bool{}
	for _, pattern := range patterns {
		found, _ := filepath.Glob(pattern)
		for _, file := range found {
			if real, err := filepath.EvalSymlinks(file); err == nil && !seen[real] {
				seen[real] = true
				files = append(files, file)
			}
		}
	}
	return files
}

// linesOf calls f with the lines of a file that is not large.
func linesOf(path string, f func(line string)) {
	file, err := os.Open(path)
	if err != nil {
		return
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		f(strings.TrimSpace(lines.Text()))
	}
}

// unitDirs are the directories of a unit: its RuntimeDirectory.
func unitDirs(file string) (dirs []runtimeDir) {
	d := runtimeDir{mode: 0o755}
	var names []string
	linesOf(file, func(line string) {
		key, value, _ := strings.Cut(line, "=")
		switch value = strings.TrimSpace(value); strings.TrimSpace(key) {
		case "RuntimeDirectory":
			names = append(names, strings.Fields(value)...)
		case "RuntimeDirectoryMode":
			if mode, err := strconv.ParseUint(value, 8, 12); err == nil {
				d.mode = uint32(mode)
			}
		case "User":
			d.user = value
		case "Group":
			d.group = value
		}
	})
	for _, name := range names {
		name, _, _ = strings.Cut(name, ":") // what follows is a link
		d.path = "/run/" + name
		dirs = append(dirs, d)
	}
	return dirs
}

// tmpfilesDirs are the directories in /run that a file of tmpfiles.d makes.
func tmpfilesDirs(file string) (dirs []runtimeDir) {
	linesOf(file, func(line string) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.ContainsAny(fields[0][:1], "dD") {
			return
		}
		d := runtimeDir{path: fields[1], mode: 0o755}
		if rest, ok := strings.CutPrefix(d.path, "/var/run/"); ok {
			d.path = "/run/" + rest
		}
		if len(fields) > 2 {
			if mode, err := strconv.ParseUint(strings.TrimLeft(fields[2], "~:"), 8, 12); err == nil {
				d.mode = uint32(mode)
			}
		}
		if len(fields) > 4 {
			d.user, d.group = fields[3], fields[4]
		}
		dirs = append(dirs, d)
	})
	return dirs
}

// idsOf reads the ids of names from /etc/passwd or /etc/group; a name that is not there has that of root.
func idsOf(file string) map[string]int {
	ids := map[string]int{}
	linesOf(file, func(line string) {
		fields := strings.SplitN(line, ":", 4)
		if len(fields) < 3 {
			return
		}
		if id, err := strconv.Atoi(fields[2]); err == nil {
			ids[fields[0]] = id
		}
	})
	return ids
}
