package account

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// nssTimeout bounds one question to the name service: a directory that does not answer would hold up the caller for minutes.
const nssTimeout = 5 * time.Second

// nssFile says where users are looked for.
const nssFile = "/etc/nsswitch.conf"

// nameService asks the guest's own C library, by getent(1), for users and groups that are not in its files. A tree that is
// not booted, and a guest without getent, has files alone.
type nameService struct {
	ctx   context.Context
	run   func(ctx context.Context, spec proc.Spec) (*proc.Result, error)
	files map[string]bool // databases that are in files alone

	known map[[2]string][]string // what was answered, by database and key

	env     []string      // of getent; nil: that of a login
	timeout time.Duration // of one question
}

func (r *Room) names(ctx context.Context, root *fsys.Root) *nameService {
	n := &nameService{ctx: ctx, known: map[[2]string][]string{}, timeout: nssTimeout}
	if r.guest.Live && r.guest.Answer == nil && r.guest.Runner != nil {
		n.run, n.files = r.guest.Runner.Run, filesAlone(root)
	}
	return n
}

// filesAlone reads which databases are in files alone, so that no program need be started.
func filesAlone(root *fsys.Root) map[string]bool {
	alone := map[string]bool{}
	data, err := root.ReadFile(nssFile, maxDefaults)
	if err != nil {
		return alone
	}
	for line := range strings.Lines(string(data)) {
		database, sources, ok := strings.Cut(strings.TrimSpace(line), ":")
		if ok && strings.TrimSpace(sources) == "files" {
			alone[strings.TrimSpace(database)] = true
		}
	}
	return alone
}

func (n *nameService) has(database, key string) (bool, error) {
	line, err := n.ask(database, key)
	return line != nil, err
}

// ask returns the fields of an entry; nil: there is none. It asks once for each in a call.
func (n *nameService) ask(database, key string) (line []string, err error) {
	if n.run == nil || n.files[database] {
		return nil, nil
	}
	question := [2]string{database, key}
	if line, known := n.known[question]; known {
		return line, nil
	}
	if line, err = n.getent(database, key); err == nil {
		n.known[question] = line
	}
	return line, err
}

func (n *nameService) getent(database, key string) ([]string, error) {
	const notFound = 2 // of getent
	got, err := n.run(n.ctx, proc.Spec{Argv: []string{"getent", database, key}, Env: n.env, Tied: true, Timeout: n.timeout})
	var start *proc.StartError
	switch {
	case errors.As(err, &start) && start.Stage == "program":
		return nil, nil
	case err != nil:
		return nil, err
	case got.TimedOut:
		return nil, fault.Wrapf(context.DeadlineExceeded, "the name service has not answered within %v", n.timeout)
	case got.Code == notFound:
		return nil, nil
	case got.Code != 0:
		said := strings.TrimSpace(string(got.Tail))
		return nil, fault.Wrapf(fault.ErrOutput, "getent %s ended with code %d: %s", database, got.Code, said)
	}
	first, _, _ := strings.Cut(string(got.Stdout), "\n")
	return fieldsOf(first), nil
}
