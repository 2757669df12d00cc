package facts

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/shirou/gopsutil/v3/load"
	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// ReadRelease reads the os-release of the system under root; zero if there is none. Links do not lead out of root.
func ReadRelease(_ context.Context, root string) Release {
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		if text, err := readUnder(root, name); err == nil {
			return parseRelease(text)
		}
	}
	return Release{}
}

// machineID matches what machine-id(5) calls one.
var machineID = lazyregexp.New(`^[0-9a-fA-F]{32}$`)

// MachineID returns the machine ID of the installation under root; empty if it has none: the file is missing, empty or says
// "uninitialized", as in an image before its first boot.
func MachineID(root string) string {
	id := firstLine(root, "etc/machine-id")
	if !machineID().MatchString(id) || strings.Trim(id, "0") == "" {
		return ""
	}
	return strings.ToLower(id)
}

// Hostname returns the name of the guest, or the configured one of the system under another root.
func Hostname(root string) string {
	if root == "" || root == "/" {
		name, _ := os.Hostname()
		return name
	}
	text, _ := readUnder(root, "etc/hostname")
	return HostnameIn(text)
}

// ProductUUID returns the UUID of this machine from SMBIOS; empty if only root may read it.
func ProductUUID() string { return firstLine("/", "sys/class/dmi/id/product_uuid") }

// Kernel returns the release of the running kernel and the architecture, as uname does.
func Kernel() (release, machine string) {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return "", ""
	}
	return unix.ByteSliceToString(name.Release[:]), unix.ByteSliceToString(name.Machine[:])
}

// CPUs counts the processors that are online, whichever of them the agent may use; as runtime.NumCPU where the kernel does not
// say.
func CPUs() int { return cpusIn(firstLine("/", "sys/devices/system/cpu/online")) }

// cpusIn counts the processors of a list such as 0-3,6.
func cpusIn(list string) (count int) {
	for part := range strings.SplitSeq(list, ",") {
		first, last, is := strings.Cut(part, "-")
		if !is {
			last = first
		}
		from, err := strconv.Atoi(first)
		to, also := strconv.Atoi(last)
		if err != nil || also != nil || to < from {
			return runtime.NumCPU()
		}
		count += to - from + 1
	}
	return count
}

// Load returns the load averages over 1, 5 and 15 minutes; 0 if they cannot be read.
func Load(ctx context.Context) (one, five, fifteen float64) {
	l, err := load.AvgWithContext(ctx)
	if err != nil {
		return 0, 0, 0
	}
	return l.Load1, l.Load5, l.Load15
}

// Processes counts processes, not threads. It lists the names under /proc and opens none of them: /proc/loadavg and sysinfo
// count threads, and /proc/stat has only the number of forks since boot.
func Processes(context.Context) (int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	count := 0
	for _, name := range names {
		if name[0] >= '0' && name[0] <= '9' {
			count++
		}
	}
	return count, err
}

// firstLine returns the first line of a file under root; empty if it cannot be read.
func firstLine(root, name string) string {
	text, err := readUnder(root, name)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(line)
}

// maxFact bounds what is read of a file, in bytes: these have a few lines.
const maxFact = 64 << 10

// readUnder reads a regular file of the guest under root: whoever made a tree may have put anything in its place.
func readUnder(root, name string) ([]byte, error) {
	if root == "" {
		root = "/"
	}
	files, err := fsys.Open(root)
	if err != nil {
		return nil, err
	}
	defer files.Close()
	return files.ReadFile("/"+name, maxFact)
}

// parseRelease reads an os-release file.
func parseRelease(text []byte) Release {
	var r Release
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		name, value, ok := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		if !ok {
			continue
		}
		switch value = unquote(value); name {
		case "NAME":
			r.Name = value
		case "VERSION_ID":
			r.Version = value
		case "ID":
			r.ID = value
		}
	}
	return r
}

// unquote removes the shell quotes of a value.
func unquote(value string) string {
	if len(value) < 2 || value[0] != value[len(value)-1] || value[0] != '"' && value[0] != '\'' {
		return value
	}
	inner := value[1 : len(value)-1]
	if value[0] == '\'' {
		return inner
	}
	return strings.NewReplacer(`\"`, `"`, `\\`, `\`, `\$`, `$`, "\\`", "`").Replace(inner)
}
