// Package firstboot runs the scripts of an image, or of who made the guest, once in each guest: in the order of their names,
// each as a transaction.
//
// A script that fails leaves the guest as it was, and those after it wait: they may build on it. It is run again at the next
// boot. A clone of the guest, which has another identity, runs all of them again. One that is refused since others are at work,
// such as a transaction that awaits its confirmation, has not failed: it is run once they have ended.
//
// Not here: where scripts come from, and what runs them.
package firstboot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Script is one that is to be run once.
type Script struct {
	// Name orders and identifies the scripts: 10-network.
	Name string
	// Path is where it lies, for people.
	Path string
	// Source is the script.
	Source []byte
	// Params are its parameters; nil: none.
	Params map[string]any
}

// Config is what a Runner needs.
type Config struct {
	// File keeps which scripts ran. Required.
	File string
	// Scripts returns the scripts, in their order. Required.
	Scripts func(context.Context) ([]Script, error)
	// Run runs one. A run under a key that it knows already returns the reply of that run, with Replayed set; what another
	// guest ran, of which this one is a clone, it does not know. Where a run has another Instance come of it, InstanceChanged
	// is called before it returns. Required.
	Run func(context.Context, *pb.RunScriptRequest) (*pb.RunScriptResponse, error)
	// Instance identifies this guest; a clone of it has another one. It waits until that is certain: what is taken back may
	// change it. Required.
	Instance func(context.Context) (string, error)
	// Boot identifies this boot of the guest. Required.
	Boot string
	// Changed is called when State may return something new. It must not block. Optional.
	Changed func()
}

// Runner runs first-boot scripts. It is safe for concurrent use.
type Runner struct {
	config Config

	mu     sync.Mutex
	status pb.FirstBoot
}

// New returns a Runner that has not begun.
func New(c Config) *Runner {
	if c.Changed == nil {
		c.Changed = func() {}
	}
	return &Runner{config: c}
}

// State returns how far the scripts are. A guest without any is configured.
func (r *Runner) State() *pb.FirstBoot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &pb.FirstBoot{State: r.status.State, Script: r.status.Script, Error: r.status.Error}
}

func (r *Runner) set(state pb.FirstBootState, script, failed string) {
	r.mu.Lock()
	r.status.State, r.status.Script, r.status.Error = state, script, failed
	r.mu.Unlock()
	r.config.Changed()
}

// record is what File holds, as JSON.
type record struct {
	Instance string                `json:"instance"`
	Scripts  map[string]recordLine `json:"scripts"`
}

// recordLine says what became of a script. Boot is that of its last run.
type recordLine struct {
	Committed bool      `json:"committed"`
	Boot      string    `json:"boot"`
	At        time.Time `json:"at"`
	Error     string    `json:"error,omitempty"`
}

// maxAttempts bounds how often a script is run in one guest.
const maxAttempts = 1000

// Run runs what has not run yet. It returns why not all scripts of this guest are committed; nil: they are. State returns the
// same.
func (r *Runner) Run(ctx context.Context) error {
	r.set(pb.FirstBootState_FIRST_BOOT_STATE_RUNNING, "", "")
	name, err := r.run(ctx)
	if err != nil {
		r.set(pb.FirstBootState_FIRST_BOOT_STATE_FAILED, name, err.Error())
		if name != "" {
			err = fmt.Errorf("first boot: %s: %w", name, err)
		}
		return err
	}
	r.set(pb.FirstBootState_FIRST_BOOT_STATE_CONFIGURED, "", "")
	return nil
}

// run returns the name of the script that failed.
func (r *Runner) run(ctx context.Context) (name string, err error) {
	list, err := r.config.Scripts(ctx)
	if err != nil || len(list) == 0 {
		return "", err
	}
	instance, err := r.config.Instance(ctx)
	if err != nil {
		return "", err
	}
	done, err := r.read(instance)
	if err != nil {
		return "", err
	}
	for _, s := range list {
		line := done.Scripts[s.Name]
		if line.Committed {
			continue
		}
		if line.Boot == r.config.Boot && line.Error != "" {
			return s.Name, errors.New(line.Error)
		}
		r.set(pb.FirstBootState_FIRST_BOOT_STATE_RUNNING, s.Name, "")
		failed := r.patiently(ctx, s)
		if failed != nil && ctx.Err() != nil {
			return s.Name, failed // it did not fail: the agent stops
		}
		line = recordLine{Committed: failed == nil, Boot: r.config.Boot, At: time.Now().UTC().Truncate(time.Second)}
		if failed != nil {
			line.Error = failed.Error()
		}
		done.Scripts[s.Name] = line
		if failed == nil { // the script may have changed it
			if done.Instance, err = r.config.Instance(ctx); err != nil {
				return s.Name, err
			}
		}
		if err := errors.Join(failed, write(r.config.File, done)); err != nil {
			return s.Name, err
		}
	}
	return "", nil
}

// refusedFor is how long a script waits that was refused since others are at work, before it is run again.
const refusedFor = time.Second

// patiently runs a script, as soon as others who are at work let it.
func (r *Runner) patiently(ctx context.Context, s Script) error {
	said := ""
	for {
		err := r.once(ctx, s)
		if !errors.Is(err, fault.ErrBusy) {
			return err
		}
		if err.Error() != said {
			said = err.Error()
			r.set(pb.FirstBootState_FIRST_BOOT_STATE_RUNNING, s.Name, "waits: "+said)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(refusedFor):
		}
	}
}

// once runs a script. fault.ErrBusy: nothing of it ran, since others are at work. That of an agent that was killed before it
// wrote down what became of it is not run again where it was committed.
func (r *Runner) once(ctx context.Context, s Script) error {
	request := &pb.RunScriptRequest{Name: s.Name + ".lua", Source: s.Source, ConfirmSeconds: new(uint32)} // nobody is there to confirm
	if s.Params != nil {
		var err error
		if request.Params, err = structpb.NewStruct(s.Params); err != nil {
			return fmt.Errorf("parameters: %w", err)
		}
	}
	for attempt := range maxAttempts {
		request.Key = fmt.Sprintf("%s%s:%d", keyPrefix, s.Name, attempt)
		reply, err := r.config.Run(ctx, request)
		switch {
		case err != nil:
			return err
		case reply.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED:
			return nil
		case reply.Replayed || reply.Error.GetKind() == "key_conflict":
			continue // an earlier run that failed, maybe of what the script was then
		case reply.Status == pb.ScriptStatus_SCRIPT_STATUS_REFUSED && reply.Error.GetKind() == "busy":
			return fault.Wrapf(fault.ErrBusy, "%s", reply.Error.GetMessage())
		}
		return fmt.Errorf("%s: %s", statusWord(reply.Status), reply.Error.GetMessage())
	}
	return fmt.Errorf("it was run %d times", maxAttempts)
}

func statusWord(s pb.ScriptStatus) string {
	switch s {
	case pb.ScriptStatus_SCRIPT_STATUS_REFUSED:
		return "refused"
	case pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK:
		return "rolled back"
	}
	return "not everything is undone"
}

// read reads what ran in this guest. What ran in the one that it was cloned from does not count.
func (r *Runner) read(instance string) (*record, error) {
	mine := &record{Instance: instance, Scripts: map[string]recordLine{}}
	text, err := os.ReadFile(r.config.File)
	if errors.Is(err, fs.ErrNotExist) {
		return mine, nil
	}
	if err != nil {
		return nil, err
	}
	there, err := parse(r.config.File, text)
	if err != nil {
		return nil, err
	}
	if there.Instance != instance || there.Scripts == nil {
		return mine, nil
	}
	return there, nil
}

func parse(file string, text []byte) (*record, error) {
	r := &record{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

// keyPrefix is what the keys of the runs begin with.
const keyPrefix = "first-boot:"

// InstanceChanged has what ran in a guest stay with it where the run under a key has given it another Instance. Other keys than
// a Runner's are those of others, of whom it is not known whether they made another guest of it. file is that of Config. No
// Runner writes it meanwhile. Done once more it changes nothing.
func InstanceChanged(file, key, from, to string) error {
	if !strings.HasPrefix(key, keyPrefix) {
		return nil
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	there, err := parse(file, text)
	if err != nil || there.Instance != from {
		return err
	}
	there.Instance = to
	return write(file, there)
}

func write(file string, now *record) error {
	text, err := json.MarshalIndent(now, "", "  ")
	if err != nil {
		return err
	}
	next := file + ".new" // always this one, so that of those whom a kill interrupts one is left at most
	temp, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = temp.Write(append(text, '\n'))
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(next, file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return nil
}
