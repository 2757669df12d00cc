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

// Some hosts freeze file systems by running fsfreeze instead of asking for it, and a guest whose thaw is lost is dead. There is
// no way to ask the kernel whether a file system is frozen, but by writing to it, which would hang. So such commands are
// known by their words, and each gets a thaw on time: one that finds nothing frozen does nothing.

// defaultFreeze is how long such a freeze may last; it is what the quiesce request has by default.
const defaultFreeze = 60 * time.Second

// freezeWords finds the uses of fsfreeze in a command: what it does, and where.
var freezeWords = regexp.MustCompile(`(?:^|[\s;&|(/])fsfreeze\s+(-f|--freeze|-u|--unfreeze)\s+("[^"]*"|'[^']*'|[^\s;&|()]+)`)

// freezes are the thaws that are due.
type freezes struct {
	// file holds their paths, for the agent that comes after one which was killed. It is written before a file system is
	// frozen and removed when none is any more. It lies in memory: a write to a frozen file system would hang. Empty: none.
	file  string
	mu    sync.Mutex
	armed map[string]*due
}

// due is one of them.
type due struct {
	timer *time.Timer
	place *place
}

// frozenBy tells which paths a command leaves frozen (true) or thawed (false). alone: it does nothing else.
func frozenBy(text string) (paths map[string]bool, alone bool) {
	found := freezeWords.FindAllStringSubmatchIndex(text, -1)
	for _, at := range found {
		if paths == nil {
			paths = map[string]bool{}
		}
		paths[strings.Trim(text[at[4]:at[5]], `"'`)] = strings.HasSuffix(text[at[2]:at[3]], "-f") || text[at[2]:at[3]] == "--freeze"
	}
	return paths, len(found) == 1 && !strings.ContainsAny(text, ";&|\n")
}

// beforeFreeze arms the thaw of what a command freezes, before it does: it might hang afterwards. What it gives is called with
// the command's exit code.
func (r *Room) beforeFreeze(call *builtins.Call, argv []string) (after func(code int)) {
	text := Quote(argv)
	if len(argv) == 3 && argv[1] == "-c" {
		text = argv[2]
	}
	paths, alone := frozenBy(text)
	if len(paths) == 0 || r.config.Root != "/" {
		return func(int) {}
	}
	fresh := map[string]bool{}
	for path, frozen := range paths {
		if frozen && !r.freezes.has(path) {
			fresh[path] = true
			r.armThaw(call, path)
		}
	}
	return func(code int) {
		for path, frozen := range paths {
			switch {
			case frozen && code == 0 && !fresh[path]: // thawed meanwhile by somebody else, and frozen anew
				r.armThaw(call, path)
			case frozen && code != 0 && alone && fresh[path]: // nothing is frozen, or by somebody else, who then thaws
				r.freezes.disarm(path)
			case !frozen && code == 0:
				r.freezes.disarm(path)
			}
		}
	}
}

// armThaw makes a path thaw on time, and tells whoever asked for the freeze.
func (r *Room) armThaw(call *builtins.Call, path string) {
	where, err := openPlace(path) // now: on a frozen file system a path may no longer be found
	if err != nil {
		return // fsfreeze will not find it either
	}
	limit := r.config.FreezeLimit
	r.freezes.disarm(path)
	r.freezes.mu.Lock()
	defer r.freezes.mu.Unlock()
	d := &due{place: where}
	d.timer = time.AfterFunc(limit, func() {
		if !r.freezes.take(path, d) {
			return
		}
		defer where.close()
		thawed, err := where.thaw()
		if !thawed && err == nil {
			return
		}
		words := fmt.Sprintf("%s was frozen by a command and not thawed within %v; it is thawed now", path, limit)
		if err != nil {
			words = fmt.Sprintf("%s was frozen by a command and cannot be thawed: %v", path, err)
		}
		if r.config.Thawed != nil {
			r.config.Thawed(words)
		}
		if call.Event != nil {
			call.Event(&pb.ErrorEvent{Severity: pb.ErrorSeverity_ERROR_SEVERITY_WARNING, Code: "thawed", Message: words})
		}
	})
	r.freezes.armed[path] = d
	r.freezes.note()
}

// note writes the paths down. The lock is held. Where that fails the agent thaws all the same, unless it is killed.
func (f *freezes) note() {
	if f.file == "" {
		return
	}
	var text strings.Builder
	for path := range f.armed {
		fmt.Fprintf(&text, "%q\n", path)
	}
	_ = os.WriteFile(f.file, []byte(text.String()), 0o600)
}

// forget takes away what note wrote, when nothing is frozen any more. The lock is held.
func (f *freezes) forget() {
	if f.file != "" && len(f.armed) == 0 {
		_ = os.Remove(f.file)
	}
}

// ThawLeft thaws what an agent that was killed had let a command freeze, as it stands in Config.FreezeFile. It gives words on
// each file system that was frozen. It must come before anything is written.
func ThawLeft(file string) (words []string) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		path, err := strconv.Unquote(strings.TrimSpace(line))
		if err != nil {
			continue
		}
		where, err := openPlace(path)
		if err != nil {
			continue
		}
		thawed, err := where.thaw()
		where.close()
		switch {
		case err != nil:
			words = append(words, fmt.Sprintf("%s was frozen when an agent was killed, and cannot be thawed: %v", path, err))
		case thawed:
			words = append(words, path+" was frozen when an agent was killed; it is thawed now")
		}
	}
	_ = os.Remove(file)
	return words
}

// take takes one away that is still the one for its path.
func (f *freezes) take(path string, d *due) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.armed[path] != d {
		return false
	}
	delete(f.armed, path)
	f.forget()
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
		d.place.close()
		delete(f.armed, path)
		f.forget()
	}
}

// release thaws everything at once: nobody would do it later.
func (f *freezes) release() {
	f.mu.Lock()
	armed := f.armed
	f.armed = map[string]*due{}
	f.mu.Unlock()
	for _, d := range armed {
		d.timer.Stop()
		d.place.thaw() // whoever froze it thaws it too, or has
		d.place.close()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(armed) > 0 {
		f.forget()
	}
}
