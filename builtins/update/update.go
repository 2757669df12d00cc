// Package update replaces the agent by a version that a host sends, and by the former one again where the new one is no good.
//
//	chunks ─► staging directory beside the program ─► signature, version, platform, self-test ─► trial, noted in the state directory
//	                                                                                               │
//	 ┌─────────────────────────────────── the agent restarts once its reply has left ◄─────────────┘
//	 ▼
//	Next ─► the staged program runs ─┬─► a host is heard in time: Confirm ─► it is renamed to its place, the former one is kept
//	  ▲                              └─► GiveUp, or it ends, or it is killed ─┐
//	  └── the installed program is started again ◄────────────────────────────┘
//
// The installed program is not touched before the new one has been confirmed, so that whatever is started after a loss of
// power, or in place of a program that does not work, is one that worked. What is noted is durable before it is acted on.
//
// Not here: what starts and stops the agent, and who is a host; cmd/quantix-kvm-agent calls Next, Confirm and GiveUp.
package update

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"aead.dev/minisign"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// kind is that of the objects in Access: their name is the version that is to be installed.
const kind = "agent_update"

const (
	// maxProgram bounds a program, in bytes: ten times what this one has.
	maxProgram = 256 << 20
	// lockTime is how long the last chunk waits for an open transaction and for scripts, well within the 30 s after which
	// hosts give up.
	lockTime = 10 * time.Second
	// idleTime is how long a transfer that does not go on keeps others from beginning.
	idleTime = time.Minute
)

// Config says how the room works. The zero value refuses every update.
type Config struct {
	// PublicKey is that of who signs agents, as minisign writes it; empty: updates are off.
	PublicKey string
	// Confirm is how long a host is awaited after each start of a new version; 0: two minutes.
	Confirm time.Duration
	// Downgrades says that a host may ask for an older version, which is signed as well, with the faults that it had.
	Downgrades bool
	// State is the agent's own directory, where a trial is noted. Required.
	State string
	// Program is where the installed agent is, and Preferred where one is started from before it; empty: nowhere. Where Program
	// belongs to a package, the new one goes to Preferred. Required.
	Program, Preferred string
	// Version is the agent's own. Required.
	Version string
	// Trial is the update that this process is the new version of; nil: it is none.
	Trial *pb.UpdateTrial
	// SelfTest returns the arguments by which a program of that version tests itself. Required.
	SelfTest func(version string) []string
	// Lock makes the caller the one writer; see builtins.Call.Lock. Scripts returns how many scripts run. Nil: there are none.
	Lock    func(ctx context.Context) (release func(), err error)
	Scripts func() int
	// Restart has the agent end, and start again. Nil: it cannot, and there are no updates.
	Restart func()
	// SelfTestTime bounds the self-test of a new program; 0: 30 s.
	SelfTestTime time.Duration
	// Step is for tests: it is called with the name of each action on the disk before that runs. Optional.
	Step func(name string)
}

// Room holds the operation. It is safe for concurrent use.
type Room struct {
	guest  *guest.Guest
	config Config

	turn sync.Mutex     // of the one request that is served
	work sync.WaitGroup // of what is dropped since its host has left

	mu       sync.Mutex
	transfer *transfer
	phase    string // as UpdateStatus.state, while it is not that of a transfer
	began    time.Time
	last     *pb.UpdateOutcome
	trouble  error // why what an earlier process noted could not be read or settled
}

// New makes the room for a guest. It starts nothing.
func New(g *guest.Guest, config Config) *Room {
	if config.Confirm == 0 {
		config.Confirm = DefaultConfirm
	}
	if config.SelfTestTime == 0 {
		config.SelfTestTime = selfTestTime
	}
	if config.Step == nil {
		config.Step = func(string) {}
	}
	return &Room{guest: g, config: config, phase: idle, began: time.Now()}
}

// DefaultConfirm is how long a host is awaited after each start of a new version.
const DefaultConfirm = 2 * time.Minute

// The states of an update, as UpdateStatus.state has them.
const (
	idle        = "idle"
	downloading = "downloading"
	verifying   = "verifying"
	applying    = "applying"
	complete    = "complete"
	failed      = "failed"
	rollingBack = "rolling_back"
)

// states are those of UpdateStatus in the contract.
var states = map[string]pb.UpdateState{
	idle: pb.UpdateState_UPDATE_STATE_IDLE, downloading: pb.UpdateState_UPDATE_STATE_DOWNLOADING,
	verifying: pb.UpdateState_UPDATE_STATE_VERIFYING, applying: pb.UpdateState_UPDATE_STATE_APPLYING,
	complete: pb.UpdateState_UPDATE_STATE_COMPLETE, failed: pb.UpdateState_UPDATE_STATE_FAILED,
	rollingBack: pb.UpdateState_UPDATE_STATE_ROLLING_BACK,
}

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	op := builtins.Op{
		Name: "agent_update", Summary: "replace the agent by a signed version; the former one comes back unless a host is heard",
		Mutates: true, Access: builtins.Of(r.access), Handler: builtins.Handle(r.update), OnError: r.refusal,
		Order:   func(proto.Message) string { return kind },
		Routine: builtins.Of(func(in *pb.AgentUpdateRequest) bool { return in.ChunkNumber > 0 && !in.IsLastChunk }),
	}
	room := builtins.Room{Name: "update", Ops: []builtins.Op{op}, Start: r.settle, SessionClosed: r.sessionClosed, Close: r.close}
	if r.served() == nil {
		room.Ops[0].Capability = "self_update"
		room.Features = func() map[string]string {
			return map[string]string{"agent_update": "minisign,restarts," + platform()}
		}
	}
	return room
}

// platform is what a signature must name.
func platform() string { return runtime.GOOS + "/" + runtime.GOARCH }

// access has the file that a rule about paths may forbid.
func (r *Room) access(in *pb.AgentUpdateRequest) builtins.Access {
	a := builtins.Access{Objects: []builtins.Object{{Kind: kind, Name: in.TargetVersion}}}
	for _, path := range []string{r.config.Program, r.config.Preferred} {
		if path != "" {
			a.Writes = append(a.Writes, path)
		}
	}
	return a
}

// served returns why no update can be served here.
func (r *Room) served() error {
	switch {
	case r.guest == nil || !r.guest.Live:
		return fault.Unsupported("not supported: a tree that is not booted has no agent that runs")
	case r.config.Restart == nil:
		return fault.Unsupported("not supported: nothing starts this agent again")
	case supported() != nil:
		return supported()
	case r.config.PublicKey == "":
		return fault.Refuse("it is off: the configuration has no update.public_key")
	}
	return nil
}

// errAwaiting and errLeaving are the causes of what is refused since an update is on trial.
var (
	errAwaiting = fault.Wrapf(fault.ErrBusy, "busy: an update awaits the contact of a host")
	errLeaving  = fault.Wrapf(fault.ErrBusy, "busy: the agent is about to be replaced")
	errReturn   = fault.Wrapf(fault.ErrBusy, "busy: the former version of the agent is about to come back")
)

// refusal is the reply to a request that failed.
func (r *Room) refusal(err error) proto.Message {
	state := failed
	switch {
	case errors.Is(err, errAwaiting), errors.Is(err, errLeaving):
		state = applying
	case errors.Is(err, errReturn):
		state = rollingBack
	}
	return &pb.AgentUpdateResponse{CurrentVersion: r.config.Version, Error: err.Error(), State: states[state]}
}

// update takes one chunk.
func (r *Room) update(ctx context.Context, call *builtins.Call, in *pb.AgentUpdateRequest) (*pb.AgentUpdateResponse, error) {
	if err := r.served(); err != nil {
		return nil, err
	}
	if !r.turn.TryLock() {
		return nil, fault.Wrapf(fault.ErrBusy, "busy: a chunk of an update is being served")
	}
	defer r.turn.Unlock()
	if err := r.pending(); err != nil {
		return nil, err
	}
	t, err := r.begin(ctx, call, in)
	if err != nil {
		return nil, err
	}
	if in.IsLastChunk {
		return r.finish(ctx, call, t, in)
	}
	if err := t.add(in); err != nil {
		return nil, r.drop(t, err)
	}
	return &pb.AgentUpdateResponse{
		Success: true, CurrentVersion: r.config.Version, ProgressPercent: t.percent(), State: states[downloading],
	}, nil
}

// finish takes the last chunk, and has the agent restart if the program may run.
func (r *Room) finish(
	ctx context.Context, call *builtins.Call, t *transfer, in *pb.AgentUpdateRequest,
) (reply *pb.AgentUpdateResponse, err error) {
	release, err := r.quiet(ctx) // before the chunk is taken, so that it can be sent again
	if err != nil {
		return nil, err
	}
	noted := false
	defer func() { // also where this panics
		if !noted {
			r.set(idle)
			err = r.drop(t, err)
			release()
		}
	}()
	if err := t.add(in); err != nil {
		return nil, err
	}
	r.set(verifying)
	if err := r.verify(ctx, t); err != nil {
		return nil, err
	}
	if err := r.noteTrial(t); err != nil {
		return nil, err
	}
	noted = true // nothing else begins: this stays the one writer
	r.mu.Lock()
	r.transfer, r.phase = nil, applying
	r.mu.Unlock()
	r.config.Step("restart")
	call.OnceReplied(r.config.Restart)
	return &pb.AgentUpdateResponse{
		Success: true, CurrentVersion: r.config.Version, RestartRequired: true, ProgressPercent: 100, State: states[complete],
	}, nil
}

// pending returns why no chunk is taken, since an update is on trial.
func (r *Room) pending() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.phase == rollingBack:
		return errReturn
	case r.phase == applying && r.config.Trial == nil:
		return errLeaving
	case r.phase == applying:
		return errAwaiting
	}
	return nil
}

// quiet waits until no script runs and no transaction is open, and makes the caller the one writer. In that order: a script
// that begins meanwhile waits for the writer, and counts as one that runs.
func (r *Room) quiet(ctx context.Context) (release func(), err error) {
	limited, cancel := context.WithTimeoutCause(ctx, lockTime, fault.Wrapf(fault.ErrBusy, "busy: a script is running"))
	defer cancel()
	for r.config.Scripts != nil && r.config.Scripts() > 0 {
		select {
		case <-limited.Done():
			return func() {}, context.Cause(limited)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if r.config.Lock == nil {
		return func() {}, nil
	}
	return r.config.Lock(limited)
}

func (r *Room) set(phase string) {
	r.mu.Lock()
	r.phase = phase
	r.mu.Unlock()
}

// key returns the key that is trusted.
func (r *Room) key() (key minisign.PublicKey, err error) {
	if err := key.UnmarshalText([]byte(strings.TrimSpace(r.config.PublicKey))); err != nil {
		return key, fault.Refuse("update.public_key of the configuration is no public key of minisign")
	}
	return key, nil
}

// Status returns the state of an update.
func (r *Room) Status() *pb.UpdateStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &pb.UpdateStatus{State: r.phase}
	if r.last != nil {
		s.Last = proto.CloneOf(r.last)
	}
	switch trial := r.config.Trial; {
	case r.transfer != nil:
		s.Version, s.FormerVersion, s.ProgressPercent = r.transfer.version, r.config.Version, r.transfer.percent()
		if r.phase == idle {
			s.State = downloading
		}
	case trial != nil && slices.Contains([]string{applying, rollingBack}, r.phase):
		s.Version, s.FormerVersion = trial.Version, trial.FormerVersion
		s.RemainingMs = uint64(max(0, time.Until(r.began.Add(confirmTime(trial))).Milliseconds()))
	case r.phase == idle && r.last != nil && r.last.Confirmed:
		s.State = complete
	case r.phase == idle && r.last != nil:
		s.State = failed
	}
	return s
}

// Notices returns the events that are sent to each host that connects: an update that was taken back, or that could not be
// settled.
func (r *Room) Notices() []*pb.ErrorEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	var words string
	switch {
	case r.trouble != nil:
		words = "the note of an update cannot be read or settled: " + r.trouble.Error()
	case r.last != nil && !r.last.Confirmed:
		words = "the update to " + r.last.Version + " was taken back: " + r.last.Error
	default:
		return nil
	}
	return []*pb.ErrorEvent{{Severity: pb.ErrorSeverity_ERROR_SEVERITY_ERROR, Code: "agent_update", Message: words}}
}

// close drops a transfer that has not ended.
func (r *Room) close() error {
	r.work.Wait()
	r.turn.Lock()
	defer r.turn.Unlock()
	r.mu.Lock()
	t := r.transfer
	r.mu.Unlock()
	if t != nil {
		return r.drop(t, nil)
	}
	return nil
}
