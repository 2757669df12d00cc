package account

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// maxNamed is how many processes an error names.
const maxNamed = 5

// idle refuses a user who has processes, such as those of a login. In a tree that is not booted nobody has any.
func (r *Room) idle(uid uint32) error {
	running, err := r.processes(uid)
	if err != nil || running == "" {
		return err
	}
	return &fault.Error{
		Err:  fault.Refuse("the user is logged in or has processes: %s", running),
		Hint: "end them, or say force = true",
	}
}

// processes names the processes of a user; empty: there is none, or the tree is not booted.
func (r *Room) processes(uid uint32) (string, error) {
	if !r.guest.Live {
		return "", nil
	}
	files, err := filepath.Glob(filepath.Join(r.proc, "[0-9]*/status"))
	if err != nil {
		return "", err
	}
	var of []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		if name, is := processOf(string(data), formatID(uid)); is {
			pid := filepath.Base(filepath.Dir(file))
			of = append(of, fmt.Sprintf("%s (%s)", pid, name))
		}
	}
	more := ""
	if len(of) > maxNamed {
		more = " and " + strconv.Itoa(len(of)-maxNamed) + " more"
	}
	return strings.Join(of[:min(len(of), maxNamed)], ", ") + more, nil
}

// processOf reads the name of a process, and whether one of its user numbers is uid.
func processOf(status, uid string) (name string, is bool) {
	for line := range strings.Lines(status) {
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "Name":
			name = strings.TrimSpace(value)
		case "Uid":
			return name, slices.Contains(strings.Fields(value), uid)
		}
	}
	return name, false
}
