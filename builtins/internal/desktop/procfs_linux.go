package desktop

import (
	"bytes"
	"io"
	"io/fs"
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

	maxAncestors = 256 // of a process that are looked at
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

// members returns the processes of the guest that name a display that is theirs, of the users that of accepts. A process that
// runs a set-uid or set-gid program is of none: its environment is another user's than it is.
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
		if m, ok := memberOf(pid, root, of); ok {
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b member) int { return a.pid - b.pid })
	return list, nil
}

// memberOf looks at one process. What it reads is of the same process, also where its number is taken by another one meanwhile.
func memberOf(pid int, root fs.FileInfo, of func(uid uint32) bool) (member, bool) {
	path := "/proc/" + strconv.Itoa(pid)
	dir, err := os.OpenRoot(path)
	if err != nil {
		return member{}, false
	}
	defer dir.Close()
	who, err := identityOf(dir)
	if err != nil || !of(who.uid) {
		return member{}, false
	}
	if there, err := os.Stat(path + "/root/"); err != nil || !os.SameFile(root, there) {
		return member{}, false // of a container
	}
	env := environ(dir) // the last thing: a process that has ended has none
	if !hasDisplay(env, who.uid) {
		return member{}, false
	}
	return member{pid, who.uid, env}, true
}

// identity is who a process is.
type identity struct {
	uid, gid uint32
	groups   []uint32
}

// identityOf returns who a process is. One whose real, effective, saved and file system ids differ is an error.
func identityOf(dir *os.Root) (identity, error) {
	status, err := dir.ReadFile("status")
	if err != nil {
		return identity{}, err
	}
	return parseIdentity(string(status))
}

var errTwoUsers = fault.Refuse("the process runs a set-uid or set-gid program")

func parseIdentity(status string) (identity, error) {
	var who identity
	seen := 0
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		if name != "Uid" && name != "Gid" && name != "Groups" {
			continue
		}
		var numbers []uint32
		for word := range strings.FieldsSeq(value) {
			n, err := strconv.ParseUint(word, 10, 32)
			if err != nil {
				return identity{}, fault.Invalid("a status of a process has %.40q as an id", word)
			}
			numbers = append(numbers, uint32(n))
		}
		if name == "Groups" {
			who.groups = numbers
			continue
		}
		if len(numbers) != 4 || slices.Max(numbers) != slices.Min(numbers) {
			return identity{}, errTwoUsers
		}
		if seen++; name == "Uid" {
			who.uid = numbers[0]
		} else {
			who.gid = numbers[0]
		}
	}
	if seen != 2 {
		return identity{}, fault.Invalid("a status of a process has no ids")
	}
	return who, nil
}

// environ returns what of the environment of a process a helper may be given.
func environ(dir *os.Root) map[string]string {
	f, err := dir.Open("environ")
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

// hasDisplay drops the displays that are not there, or are another user's, and reports whether one is left.
func hasDisplay(env map[string]string, uid uint32) bool {
	if env == nil {
		return false
	}
	if !isXServer(env["DISPLAY"], uid) {
		delete(env, "DISPLAY")
	}
	if !isSocket(waylandSocket(env, uid), uid) {
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

// inMemory reports whether a path that a process names is where sockets are. No other one is looked at: it may be on a file
// system that never answers.
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

// isSocket reports whether there is a socket that one of these users made. A link to one is none.
func isSocket(path string, owners ...uint32) bool {
	if path == "" {
		return false
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&fs.ModeSocket == 0 {
		return false
	}
	return slices.Contains(owners, info.Sys().(*syscall.Stat_t).Uid)
}

// isXServer reports whether an X display is there that may be a user's: its server is the user's, or root's.
func isXServer(display string, uid uint32) bool { return isSocket(xSocket(display), uid, 0) }

// ofServer reports whether the display of a process is one of its user. Every user can name a display whose server is root's:
// that is of whoever was started by what started the server, which is a display manager, or xinit. Where init did, or where
// that is not known, it may be of anybody.
func (m member) ofServer() bool {
	if m.env["WAYLAND_DISPLAY"] != "" || isSocket(xSocket(m.env["DISPLAY"]), m.uid) {
		return true
	}
	manager := parent(serverOf(m.env["DISPLAY"]))
	return manager <= 1 || descends(m.pid, manager)
}

// serverOf returns the process that is root's server of an X display; 0: not known.
func serverOf(display string) int {
	path := filepath.Join(filepath.Dir(xSockets), "."+filepath.Base(xSocket(display))+"-lock")
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > 64 || info.Sys().(*syscall.Stat_t).Uid != 0 {
		return 0
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(content))) // 0 if it is no number
	return pid
}

// descends reports whether a process is a child of another one, or of a child of it, and so on.
func descends(pid, ancestor int) bool {
	for depth := 0; pid > 1 && depth < maxAncestors; depth++ {
		if pid = parent(pid); pid == ancestor {
			return true
		}
	}
	return false
}

// parent returns the parent of a process; 0: not known, or none.
func parent(pid int) int {
	if pid <= 0 {
		return 0
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "PPid:"); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(value)) // the kernel writes a number
			return n
		}
	}
	return 0
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

// inScope reports whether a process is in the control group of a session of logind.
func (m member) inScope(id string) bool {
	group, err := os.ReadFile("/proc/" + strconv.Itoa(m.pid) + "/cgroup")
	return err == nil && bytes.Contains(group, []byte("/session-"+id+".scope"))
}

// guess finds the display of a session none of whose processes names it.
func (m member) guess(s *Session) error {
	if s.Type == "x11" {
		if !isXServer(s.Display, m.uid) {
			return fault.Wrapf(fault.ErrBusy, "the %v has no X server that is known (yet)", s)
		}
		m.env["DISPLAY"] = s.Display
		return nil
	}
	sockets, _ := filepath.Glob(filepath.Join(runtimeDir(m.env, m.uid), "wayland-*")) // the pattern is a good one
	for _, path := range sockets {
		if isSocket(path, m.uid) {
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
	if bus := filepath.Join(dir, "bus"); m.env["DBUS_SESSION_BUS_ADDRESS"] == "" && isSocket(bus, m.uid) {
		m.env["DBUS_SESSION_BUS_ADDRESS"] = "unix:path=" + bus
	}
	if s.Type == "x11" {
		delete(m.env, "WAYLAND_DISPLAY") // of a compositor in a window
	}
	m.env["XDG_SESSION_TYPE"] = s.Type
}

// identify completes a user that the accounts do not know, by the groups of a process of the session.
func (m member) identify(u *proc.User) error {
	if m.pid == 0 {
		return fault.Unsupported("user %s is not in the accounts, and has no process in the session", u.Name)
	}
	dir, err := os.OpenRoot("/proc/" + strconv.Itoa(m.pid))
	if err != nil {
		return fault.On("user "+u.Name, err)
	}
	defer dir.Close()
	who, err := identityOf(dir)
	if err != nil {
		return fault.On("user "+u.Name, err)
	}
	if who.uid != u.UID {
		return fault.Wrapf(fault.ErrChanged, "user %s: the process has ended", u.Name)
	}
	u.GID, u.Groups = who.gid, who.groups
	return nil
}

// findByProcesses returns the session of the only user who has one, of those that of accepts: never one of root, and of an
// agent that is not root only its own user's. Only processes that are ofServer count.
func findByProcesses(files *fsys.Root, of func(uid uint32) bool) (*Session, error) {
	list, err := members(func(uid uint32) bool { return uid >= firstUser && uid != nobody && of(uid) })
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(m member) bool { return !m.ofServer() })
	if len(list) == 0 {
		return nil, fault.Unsupported("there is no graphical session in this guest")
	}
	users := map[uint32]bool{}
	for _, m := range list {
		users[m.uid] = true
	}
	if len(users) > 1 {
		return nil, fault.Unsupported(
			"%d users have a graphical session, and there is no logind that says which one is in front", len(users))
	}
	first := list[0]
	s := &Session{
		Type: "x11", Display: withoutScreen(first.env["DISPLAY"]), origin: origin{pid: first.pid},
		User: (&finder{files: files}).user(first.uid, ""),
	}
	if display := first.env["WAYLAND_DISPLAY"]; display != "" {
		s.Type, s.Display = "wayland", display
	}
	return s, nil
}
