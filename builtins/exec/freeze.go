package exec

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Some hosts freeze file systems by the command fsfreeze instead of the quiesce request. If the thaw is lost the guest hangs.
// The kernel does not tell whether a file system is frozen, except by a write that blocks. So such commands are recognized
// by their text, and each freeze gets a timer that thaws; a thaw of a file system that is not frozen does nothing.

// defaultFreeze is how long such a freeze may last: the default of the quiesce request.
const defaultFreeze = 60 * time.Second

// freezePattern matches the uses of fsfreeze in a command: its option and its path.
var freezePattern = regexp.MustCompile(`(?:^|[\s;&|(/])fsfreeze\s+(-f|--freeze|-u|--unfreeze)\s+("[^"]*"|'[^']*'|[^\s;&|()]+)`)

// freezes are the armed thaw timers.
type freezes struct {
	// file lists their paths for the agent that follows a killed one. It is written before a freeze and removed after the
	// last thaw. It must be on a tmpfs: a write to a frozen file system would block. Empty: no file.
	file  string
	mu    sync.Mutex
	armed map[string]*due
}

// due is one thaw timer, with the target that it thaws.
type due struct {
	timer  *time.Timer
	target *thawTarget
}

// frozenBy returns which paths a command leaves frozen (true) or thawed (false). alone: it does nothing else.
func frozenBy(text string) (paths map[string]bool, alone bool) {
	found := freezePattern.FindAllStringSubmatchIndex(text, -1)
	for _, at := range found {
		if paths == nil {
			paths = map[string]bool{}
		}
		paths[strings.Trim(text[at[4]:at[5]], `"'`)] = strings.HasSuffix(text[at[2]:at[3]], "-f") || text[at[2]:at[3]] == "--freeze"
	}
	return paths, len(found) == 1 && !strings.ContainsAny(text, ";&|\n")
}

// beforeFreeze arms the thaw timers of a command before it runs: afterwards the agent might block. The caller passes the
// command's exit code to after.
func (r *Room) beforeFreeze(call *builtins.Call, argv []string) (after func(code int)) {
	text := Quote(argv)
	if len(argv) == 3 && argv[1] == "-c" {
		text = argv[2]
	}
	paths, alone := frozenBy(text)
	if len(paths) == 0 || !r.guest.Live {
		return func(int) {}
	}
	armed := map[string]bool{}
	for path, frozen := range paths {
		if frozen && !r.freezes.has(path) {
			armed[path] = true
			r.armThaw(call, path)
		}
	}
	return func(code int) {
		for path, frozen := range paths {
			switch {
			case frozen && code == 0 && !armed[path]: // somebody else thawed it meanwhile, and it is frozen anew
				r.armThaw(call, path)
			case frozen && code != 0 && alone && armed[path]: // not frozen, or by somebody else, who thaws it
				r.freezes.disarm(path)
			case !frozen && code == 0:
				r.freezes.disarm(path)
			}
		}
	}
}

// armThaw arms the thaw timer of a path. When it fires it reports that to the log and to the host that sent the command.
func (r *Room) armThaw(call *builtins.Call, path string) {
	target, err := openThawTarget(path) // now: on a frozen file system the path may not be found any more
	if err != nil {
		return // fsfreeze will fail, too
	}
	limit := r.config.FreezeLimit
	r.freezes.disarm(path)
	r.freezes.mu.Lock()
	defer r.freezes.mu.Unlock()
	d := &due{target: target}
	d.timer = time.AfterFunc(limit, func() {
		if !r.freezes.claim(path, d) {
			return
		}
		defer target.close()
		thawed, err := target.thaw()
		if !thawed && err == nil {
			return
		}
		message := fmt.Sprintf("%s was frozen by a command and not thawed within %v; it is thawed now", path, limit)
		if err != nil {
			message = fmt.Sprintf("%s was frozen by a command and cannot be thawed: %v", path, err)
		}
		if r.config.Thawed != nil {
			r.config.Thawed(message)
		}
		if call.Event != nil {
			call.Event(&pb.ErrorEvent{Severity: pb.ErrorSeverity_ERROR_SEVERITY_WARNING, Code: "thawed", Message: message})
		}
	})
	r.freezes.armed[path] = d
	r.freezes.writeFile()
}

// writeFile writes the paths to file. The caller holds mu. If it fails the timers still thaw, unless the agent is killed.
func (f *freezes) writeFile() {
	if f.file == "" {
		return
	}
	var text strings.Builder
	for path := range f.armed {
		fmt.Fprintf(&text, "%q\n", path)
	}
	_ = os.WriteFile(f.file, []byte(text.String()), 0o600)
}

// removeFile removes the file if no timer is armed. The caller holds mu.
func (f *freezes) removeFile() {
	if f.file != "" && len(f.armed) == 0 {
		_ = os.Remove(f.file)
	}
}

// ThawLeft thaws what commands of a killed agent left frozen, as listed in file, its Config.FreezeFile. It returns a message
// for each file system that was frozen. It must be called before anything is written to a disk.
func ThawLeft(file string) (messages []string) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		path, err := strconv.Unquote(strings.TrimSpace(line))
		if err != nil {
			continue
		}
		target, err := openThawTarget(path)
		if err != nil {
			continue
		}
		thawed, err := target.thaw()
		target.close()
		switch {
		case err != nil:
			messages = append(messages, fmt.Sprintf("%s was frozen when an agent was killed, and cannot be thawed: %v", path, err))
		case thawed:
			messages = append(messages, path+" was frozen when an agent was killed; it is thawed now")
		}
	}
	_ = os.Remove(file)
	return messages
}

// claim removes a timer that fired. It returns false if another one replaced it meanwhile.
func (f *freezes) claim(path string, d *due) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.armed[path] != d {
		return false
	}
	delete(f.armed, path)
	f.removeFile()
	return true
}

func (f *freezes) has(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.armed[path] != nil
}

func (f *freezes) disarm(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.armed[path]; d != nil {
		d.timer.Stop()
		d.target.close()
		delete(f.armed, path)
		f.removeFile()
	}
}

// release thaws everything at once, since no timer fires after the end of the agent.
func (f *freezes) release() {
	f.mu.Lock()
	armed := f.armed
	f.armed = map[string]*due{}
	f.mu.Unlock()
	for _, d := range armed {
		d.timer.Stop()
		d.target.thaw() // the later thaw of the command's sender fails, which is harmless
		d.target.close()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(armed) > 0 {
		f.removeFile()
	}
}
