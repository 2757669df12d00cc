package pkg

import (
	"bytes"
	"errors"
	"io/fs"
	"regexp"
	"strings"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// failure recognizes what went wrong by a line that a manager prints. Managers have no exit codes for it, but for zypper; the
// lines are those of the versions that the supported distributions have, in English.
type failure struct {
	line  *regexp.Regexp
	cause error
	hint  string
}

const refreshHint = "refresh = true reads the lists of what is available anew"

// failures are in the order in which they are looked for: a lock comes before what it led to.
func failures() []failure {
	return []failure{
		{regexp.MustCompile(`Could not get lock|Unable to acquire the dpkg frontend lock|` +
			`Unable to lock (the )?(list |download )?d(irectory|atabase)|unable to lock database|System management is locked|Waiting for process with pid|dpkg frontend lock was locked|` +
			`status database area is locked|Failed to obtain rpm transaction lock|can't create transaction lock|Failed to lock`),
			fault.ErrBusy, ""},
		{regexp.MustCompile(`No space left on device|don't have enough free space|more space needed|not enough free disk space|` +
			`needs \d+\S* ?MB (more space )?on|Not enough space`), syscall.ENOSPC, ""},
		{regexp.MustCompile(`Read-only file system`), syscall.EROFS, ""},
		{regexp.MustCompile(`dpkg was interrupted`), fault.ErrRefused, "dpkg --configure -a finishes what was interrupted"},
		{regexp.MustCompile(`Temporary failure (resolving|in name resolution)|Could not resolve|Couldn't resolve|Could not connect|` +
			`Unable to connect|Couldn't connect|Network is unreachable|No route to host|Connection (timed out|refused)|Connection failed|` +
			`DNS (lookup )?error|network error|temporary error \(try again later\)|Failed to connect`),
			syscall.ENETUNREACH, ""},
		{regexp.MustCompile(`Unable to locate package|has no installation candidate|Version '.*' for '.*' was not found|` +
			`No match for argument|Unable to find a match|No provider of|not found in package names|no such package|target not found|` +
			`breaks: world\[|No package .* available`), fs.ErrNotExist, refreshHint},
		{regexp.MustCompile(`404 +Not Found|error: 404|The requested URL returned error: 404`), fs.ErrNotExist, refreshHint},
		{regexp.MustCompile(`are you root|Permission denied|must be root|need to be root|` +
			`superuser privileges|Root privileges are required`),
			fs.ErrPermission, ""},
	}
}

// zypperCodes are the exit codes of zypper that say what went wrong.
func zypperCodes() map[int]error {
	return map[int]error{7: fault.ErrBusy, 104: fs.ErrNotExist, 5: fs.ErrPermission}
}

// maxLine bounds the line of a manager that an error quotes, in bytes.
const maxLine = 400

// acted reports whether a manager that was run came to where scripts of packages and hooks run, which can change anything. What
// it prints before that is its own. certain: the answer no is a proof, since all was read and it ended by itself.
func (m *manager) acted(result *proc.Result) (acted, certain bool) {
	certain = !result.Truncated && result.Signal == 0 && !result.TimedOut
	reached := regexp.MustCompile(m.reached)
	for _, printed := range [][]byte{result.Stderr, result.Stdout} {
		for line := range bytes.Lines(printed) {
			if reached.Match(bytes.TrimSpace(line)) {
				return true, certain
			}
		}
	}
	return false, certain
}

// words returns the lines of a manager that say what went wrong: not those of scripts of packages, nor of apt's hooks, which
// run at any time. A line that is indented goes on with the one before.
func (m *manager) words(result *proc.Result, acted bool) (lines []string) {
	own := regexp.MustCompile(m.own)
	for _, printed := range [][]byte{result.Stderr, result.Stdout} {
		mine := false
		for line := range strings.Lines(string(printed)) {
			if indented := strings.HasPrefix(line, " "); !indented || !mine {
				mine = !acted || own.MatchString(line)
			}
			if mine {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// judge makes the error of a manager that has failed. acted: scripts of packages may have run. Then it had its lock.
func (m *manager) judge(result *proc.Result, acted bool) error {
	lines, reached := m.words(result, acted), regexp.MustCompile(m.reached)
	for _, f := range failures() {
		if result.TimedOut && f.cause != fault.ErrBusy { // dnf waits for a lock itself
			break
		}
		if acted && f.cause == fault.ErrBusy {
			continue
		}
		for _, line := range lines {
			if f.line.MatchString(line) && !reached.MatchString(line) { // that quotes a script or a hook
				return &fault.Error{Object: m.name, Err: fault.Wrapf(f.cause, "%s", oneLine(line)), Hint: f.hint}
			}
		}
	}
	if result.TimedOut {
		return fault.On(m.name, result.Err())
	}
	if cause := zypperCodes()[result.Code]; m.name == "zypper" && cause != nil && !acted {
		return fault.On(m.name, fault.Wrapf(cause, "%v", result.Err()))
	}
	for _, line := range lines { // the first error is the cause of the others
		if word, _, ok := strings.Cut(line, ": "); ok && (word == "E" || strings.EqualFold(word, "error")) {
			return fault.On(m.name, fault.Wrapf(fault.ErrOutput, "%s: %s", result.How(), oneLine(line)))
		}
	}
	return fault.On(m.name, result.Err())
}

func oneLine(line string) string {
	clean, _ := text.ToValidUTF8Max(strings.TrimSpace(line), maxLine)
	return clean
}

// harmless reports whether a manager that failed so, before it ran any script, has done nothing.
func harmless(err error) bool {
	return errors.Is(err, fault.ErrBusy) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENETUNREACH)
}
