package desktop

import (
	"bytes"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	maxEnviron  = 256 << 10 // bytes of the environment of a process that are read
	maxVariable = 4096      // bytes of a variable that a helper is given
	xSockets    = "/tmp/.X11-unix"
	firstUser   = 1000 // below are users of services (login.defs(5), UID_MIN)
	nobody      = 65534
)

// names are the variables of a session that a helper is given, and no other one.
var names = []string{
	"DISPLAY", "XAUTHORITY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "XDG_SESSION_ID",
	"XDG_SESSION_TYPE", "XDG_CURRENT_DESKTOP", "DESKTOP_SESSION", "SWAYSOCK",
}

// member is a process that may be of a session.
type member struct {
	pid int
	uid uint32
	env map[string]string // the variables in names
}

// members returns the processes of the guest that name a display that is there, of the users that of accepts.
func members(of func(uid uint32) bool) ([]member, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	root, err := os.Stat("/")
	if err != nil {
		return nil, err
	}
	var list []member
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		dir := "/proc/" + entry.Name()
		info, err := os.Stat(dir)
		if err != nil {
			continue
		}
		uid := info.Sys().(*syscall.Stat_t).Uid
		if !of(uid) {
			continue
		}
		env := environ(dir)
		if !hasDisplay(env, uid) {
			continue
		}
		if there, err := os.Stat(dir + "/root/"); err != nil || !os.SameFile(root, there) {
			continue // of a container
		}
		list = append(list, member{pid, uid, env})
	}
	slices.SortFunc(list, func(a, b member) int { return a.pid - b.pid })
	return list, nil
}

// environ returns what of the environment of a process a helper may be given.
func environ(dir string) map[string]string {
	f, err := os.Open(dir + "/environ")
	if err != nil {
		return nil
	}
	defer f.Close()
	content, _ := io.ReadAll(io.LimitReader(f, maxEnviron)) // what was read counts
	env := map[string]string{}
	for entry := range bytes.SplitSeq(content, []byte{0}) {
		name, value, ok := strings.Cut(string(entry), "=")
		if ok && slices.Contains(names, name) && value != "" && len(value) <= maxVariable {
			env[name] = value
		}
	}
	return env
}

// hasDisplay drops the displays that are not there, and says whether one is left.
func hasDisplay(env map[string]string, uid uint32) bool {
	if env == nil {
		return false
	}
	if !isSocket(xSocket(env["DISPLAY"])) {
		delete(env, "DISPLAY")
	}
	if !isSocket(waylandSocket(env, uid)) {
		delete(env, "WAYLAND_DISPLAY")
	}
	return env["DISPLAY"] != "" || env["WAYLAND_DISPLAY"] != ""
}

// xSocket returns the socket of a local X display; empty: it is none.
func xSocket(display string) string {
	number, ok := strings.CutPrefix(strings.TrimPrefix(display, "unix"), ":")
	number, _, _ = strings.Cut(number, ".")
	if _, err := strconv.ParseUint(number, 10, 16); err != nil || !ok {
		return ""
	}
	return filepath.Join(xSockets, "X"+number)
}

// withoutScreen returns an X display without the number of a screen of it.
func withoutScreen(display string) string {
	colon := strings.LastIndexByte(display, ':')
	if at := strings.LastIndexByte(display, '.'); colon >= 0 && at > colon {
		return display[:at]
	}
	return display
}

// inMemory says whether a path that a process names is where sockets are. No other one is looked at: it may be on a file system
// that never answers.
func inMemory(path string) bool {
	return strings.HasPrefix(path, "/run/") || strings.HasPrefix(path, "/tmp/")
}

// waylandSocket returns the socket of the Wayland display of an environment; empty: it names none.
func waylandSocket(env map[string]string, uid uint32) string {
	name := env["WAYLAND_DISPLAY"]
	switch {
	case name == "":
		return ""
	case filepath.IsAbs(name):
		if !inMemory(filepath.Clean(name)) {
			return ""
		}
		return name
	}
	return filepath.Join(runtimeDir(env, uid), name)
}

func runtimeDir(env map[string]string, uid uint32) string {
	if dir := env["XDG_RUNTIME_DIR"]; inMemory(filepath.Clean(dir)) {
		return dir
	}
	return "/run/user/" + strconv.FormatUint(uint64(uid), 10)
}

func isSocket(path string) bool {
	if path == "" {
		return false
	}
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeSocket != 0
}

// sessionProcess returns the process that says most about a session: by its environment the helper finds the display.
func sessionProcess(s *Session) (member, error) {
	list, err := members(func(uid uint32) bool { return uid == s.User.UID })
	if err != nil {
		return member{}, err
	}
	best, score := member{}, -1
	for _, m := range list {
		if n := m.score(s); n > score {
			best, score = m, n
		}
	}
	if score < 0 {
		best = member{pid: s.pid, uid: s.User.UID, env: map[string]string{}}
		if err := best.guess(s); err != nil {
			return member{}, err
		}
	}
	best.complete(s)
	return best, nil
}

// score says how well the environment of a process fits a session; below 0: not at all.
func (m member) score(s *Session) int {
	display := m.env["DISPLAY"]
	if s.Type == "wayland" {
		display = m.env["WAYLAND_DISPLAY"]
	}
	if display == "" || s.Display != "" && display != s.Display && xSocket(display) != xSocket(s.Display) {
		return -1
	}
	n := 0
	if s.ID != "" && (m.env["XDG_SESSION_ID"] == s.ID || m.inScope(s.ID)) {
		n += 4
	}
	for _, name := range []string{"DBUS_SESSION_BUS_ADDRESS", "XAUTHORITY"} {
		if m.env[name] != "" {
			n++
		}
	}
	return n
}

// inScope says whether a process is in the control group of a session of logind.
func (m member) inScope(id string) bool {
	group, err := os.ReadFile("/proc/" + strconv.Itoa(m.pid) + "/cgroup")
	return err == nil && bytes.Contains(group, []byte("/session-"+id+".scope"))
}

// guess finds the display of a session none of whose processes names it.
func (m member) guess(s *Session) error {
	if s.Type == "x11" {
		if !isSocket(xSocket(s.Display)) {
			return fault.Wrapf(fault.ErrBusy, "the %v has no X server that is known (yet)", s)
		}
		m.env["DISPLAY"] = s.Display
		return nil
	}
	sockets, _ := filepath.Glob(filepath.Join(runtimeDir(m.env, m.uid), "wayland-*")) // the pattern is a good one
	for _, path := range sockets {
		if isSocket(path) {
			m.env["WAYLAND_DISPLAY"] = filepath.Base(path)
			return nil
		}
	}
	return fault.Wrapf(fault.ErrBusy, "the %v has no Wayland socket that is known (yet)", s)
}

// complete adds what follows from the rest of the environment.
func (m member) complete(s *Session) {
	dir := runtimeDir(m.env, m.uid)
	if _, err := os.Stat(dir); err == nil {
		m.env["XDG_RUNTIME_DIR"] = dir
	}
	if bus := filepath.Join(dir, "bus"); m.env["DBUS_SESSION_BUS_ADDRESS"] == "" && isSocket(bus) {
		m.env["DBUS_SESSION_BUS_ADDRESS"] = "unix:path=" + bus
	}
	if s.Type == "x11" {
		delete(m.env, "WAYLAND_DISPLAY") // of a compositor in a window
	}
	m.env["XDG_SESSION_TYPE"] = s.Type
}

// identity completes a user that the accounts do not know, by the groups of a process of the session.
func (m member) identity(u *proc.User) error {
	if m.pid == 0 {
		return fault.Unsupported("user %s is not in the accounts, and has no process in the session", u.Name)
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(m.pid) + "/status")
	if err != nil {
		return fault.On("user "+u.Name, err)
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		var numbers []uint32
		for word := range strings.FieldsSeq(value) {
			if n, err := strconv.ParseUint(word, 10, 32); err == nil {
				numbers = append(numbers, uint32(n))
			}
		}
		switch {
		case name == "Uid" && (len(numbers) != 4 || numbers[0] != u.UID):
			return fault.Wrapf(fault.ErrChanged, "user %s: the process has ended", u.Name)
		case name == "Gid" && len(numbers) == 4:
			u.GID = numbers[0]
		case name == "Groups":
			u.Groups = numbers
		}
	}
	return nil
}

// findByProcesses returns the session of the only user who has one, where logind knows of none. Of an agent that is not root
// only its own user counts.
func findByProcesses(files *fsys.Root) (*Session, error) {
	list, err := members(func(uint32) bool { return true })
	if err != nil {
		return nil, err
	}
	users := map[uint32][]member{}
	for _, m := range list {
		users[m.uid] = append(users[m.uid], m)
	}
	people := slices.DeleteFunc(slices.Sorted(maps.Keys(users)), func(uid uint32) bool { return uid < firstUser || uid == nobody })
	if len(people) == 0 && users[0] != nil {
		people = []uint32{0} // a guest without ordinary users
	}
	switch len(people) {
	case 0:
		return nil, fault.Unsupported("there is no graphical session in this guest")
	case 1:
	default:
		return nil, fault.Unsupported(
			"%d users have a graphical session, and there is no logind that says which one is in front", len(people))
	}
	first := users[people[0]][0]
	s := &Session{
		Type: "x11", Display: withoutScreen(first.env["DISPLAY"]), origin: origin{pid: first.pid}, User: (&finder{files: files}).user(first.uid, ""),
	}
	if display := first.env["WAYLAND_DISPLAY"]; display != "" {
		s.Type, s.Display = "wayland", display
	}
	return s, nil
}
