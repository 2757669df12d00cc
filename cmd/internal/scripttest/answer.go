package scripttest

import (
	"os"
	"path"
	"regexp"
	"strings"
	"sync"

	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// answers stand for the commands of a script: nothing is started on the author's machine.
type answers struct {
	dir  string
	list []*pb.TrialCommandArgs

	mu      sync.Mutex
	ran     []string
	excused map[string]bool // paths that irreversible commands changed
}

// fits reports whether a line of shell is meant by a text in which * stands for anything.
func fits(pattern, line string) bool {
	expression := strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, "(?s:.*)")
	return regexp.MustCompile("^" + expression + "$").MatchString(line)
}

// run notes a command, and does what its answer says. One that nobody spoke of succeeds and does nothing.
func (a *answers) run(c all.Command) (*pb.RunResult, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	line := c.Line
	if c.Undo {
		line = "undo: " + line
	}
	a.ran = append(a.ran, line)
	answer, err := a.find(c.Line)
	if answer == nil || err != nil {
		return &pb.RunResult{}, err
	}
	root, err := os.OpenRoot(a.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for _, name := range answer.Remove {
		if err := a.may(c, name); err != nil {
			return nil, err
		}
		if err := root.RemoveAll(below(name)); err != nil {
			return nil, err
		}
	}
	for name, content := range answer.Write {
		if err := a.may(c, name); err != nil {
			return nil, err
		}
		if err := root.MkdirAll(path.Dir(below(name)), 0o755); err != nil {
			return nil, err
		}
		if err := root.WriteFile(below(name), content, 0o644); err != nil {
			return nil, err
		}
	}
	return &pb.RunResult{Code: answer.Code, Stdout: answer.Stdout, Stderr: answer.Stderr}, nil
}

// find gives the last answer that fits; nil where none does.
func (a *answers) find(line string) (found *pb.TrialCommandArgs, err error) {
	root, err := os.OpenRoot(a.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for _, answer := range a.list {
		if !fits(answer.Command, line) {
			continue
		}
		if answer.Exists != "" {
			if _, err := root.Lstat(below(answer.Exists)); err != nil {
				continue
			}
		}
		found = answer
	}
	return found, nil
}

// may checks what an answer does against what the command says of itself, as the agent holds a real one.
func (a *answers) may(c all.Command, name string) error {
	within := false
	for _, p := range c.Touches {
		within = within || fsys.Within(path.Clean(name), path.Clean(p))
	}
	switch {
	case c.Readonly:
		return fault.Refuse("the answer to %q changes %s, and the command is readonly", c.Line, name)
	case c.Undo:
	case len(c.Touches) > 0 && !within:
		return fault.Refuse("the answer to %q changes %s, which the command does not name in touches", c.Line, name)
	case c.Irreversible:
		a.excused[path.Clean(name)] = true
	}
	return nil
}

// below makes a path of the guest one from its root.
func below(name string) string {
	if name = strings.TrimPrefix(path.Clean("/"+name), "/"); name == "" {
		return "."
	}
	return name
}

// checkAnswer finds what could never be.
func checkAnswer(in *pb.TrialCommandArgs) error {
	if in.Command == "" {
		return fault.Invalid("no command")
	}
	paths := append([]string{}, in.Remove...)
	for name := range in.Write {
		paths = append(paths, name)
	}
	if in.Exists != "" {
		paths = append(paths, in.Exists)
	}
	for _, name := range paths {
		if !path.IsAbs(name) || path.Clean(name) == "/" {
			return fault.Invalid("%q is not an absolute path below /", name)
		}
	}
	if in.Code < 0 || in.Code > 255 {
		return fault.Invalid("code %d is not within 0 to 255", in.Code)
	}
	return nil
}
