package update

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// transfer is a program that is being sent. The room's turn guards it, but for size, which Status reads as well.
type transfer struct {
	owner   string // whose it is: the port, the connection and the name that the sender gave it
	port    string
	session string
	version string
	signed  *signed
	sum     string // that the sender says, in lower case
	target  string // where the program goes when it is confirmed
	stage   *stage
	next    uint32
	size    atomic.Uint64
	total   uint64
	last    time.Time // when a chunk came
}

// begin returns the transfer that a chunk belongs to. Chunk 0 begins one.
func (r *Room) begin(ctx context.Context, call *builtins.Call, in *pb.AgentUpdateRequest) (*transfer, error) {
	owner := strings.Join([]string{call.Port, call.Session, in.Transfer}, "\x00")
	r.mu.Lock()
	t := r.transfer
	r.mu.Unlock()
	switch {
	case t != nil && t.owner != owner && time.Since(t.last) < idleTime:
		return nil, fault.Wrapf(fault.ErrBusy, "busy: version %s is being sent by another host or in another transfer", t.version)
	case t != nil && t.owner == owner && in.ChunkNumber != t.next:
		return nil, r.drop(t, fault.Invalid("chunk %d came where %d was due; the transfer is dropped", in.ChunkNumber, t.next))
	case t != nil && t.owner == owner && in.TargetVersion != t.version:
		err := fault.Invalid("a chunk of version %s came in a transfer of %s, which is dropped", short(in.TargetVersion), t.version)
		return nil, r.drop(t, err)
	case t != nil && t.owner == owner:
		return t, nil
	case t != nil:
		_ = r.drop(t, nil)
	}
	if in.ChunkNumber != 0 {
		return nil, fault.Invalid("chunk %d came, and no transfer has begun: chunk 0 begins one", in.ChunkNumber)
	}
	t, err := r.accept(ctx, in)
	if err != nil {
		return nil, err
	}
	t.owner, t.port, t.session = owner, call.Port, call.Session
	r.mu.Lock()
	r.transfer = t
	r.mu.Unlock()
	return t, nil
}

// accept checks all that can be known before the program has come, and makes the staging directory.
func (r *Room) accept(ctx context.Context, in *pb.AgentUpdateRequest) (*transfer, error) {
	key, err := r.key()
	if err != nil {
		return nil, err
	}
	if err := checkVersion(in.TargetVersion); err != nil {
		return nil, err
	}
	s, err := parseSignature(key, in.Signature)
	if err != nil {
		return nil, err
	}
	if err := s.allows(in.TargetVersion, r.config.Version, in.AllowDowngrade && r.config.Downgrades); err != nil {
		return nil, err
	}
	switch {
	case len(in.ChecksumSha256) != 64 || strings.Trim(strings.ToLower(in.ChecksumSha256), "0123456789abcdef") != "":
		return nil, fault.Invalid("checksum_sha256 is required, in 64 hexadecimal digits")
	case in.TotalSize == 0 || in.TotalSize > maxProgram:
		return nil, fault.Invalid("total_size is %d; it is required, and at most %d", in.TotalSize, maxProgram)
	}
	target, err := r.target(ctx, in.OverridePackage)
	if err != nil {
		return nil, err
	}
	if err := writeNote(r.config.State, transferFile, &pb.UpdateTrial{Format: trialFormat, Target: target}); err != nil {
		return nil, err
	}
	r.config.Step("stage.open")
	dir, err := openStage(target)
	if err != nil {
		return nil, err
	}
	r.config.Step("stage.create")
	if err := dir.create(); err != nil {
		return nil, errors.Join(err, dir.remove())
	}
	return &transfer{
		version: in.TargetVersion, signed: s, sum: strings.ToLower(in.ChecksumSha256), target: target, stage: dir,
		total: in.TotalSize,
	}, nil
}

// target returns where the new program will be: where the present one is, or, where that belongs to a package and the sender
// says so, where one is started from before it.
func (r *Room) target(ctx context.Context, override bool) (string, error) {
	owner, err := r.owner(ctx, r.config.Program)
	switch {
	case err != nil:
		return "", err
	case owner == "":
		return r.config.Program, nil
	case !override:
		return "", fault.Refuse("%s belongs to %s: update the package, or send override_package to have the new version run before it",
			r.config.Program, owner)
	case r.config.Preferred == "" || r.config.Preferred == r.config.Program:
		return "", fault.Refuse("%s belongs to %s, and nothing is started before it", r.config.Program, owner)
	}
	switch owner, err := r.owner(ctx, r.config.Preferred); {
	case err != nil:
		return "", err
	case owner != "":
		return "", fault.Refuse("%s belongs to %s as well", r.config.Preferred, owner)
	}
	// A program is known by where it is in truth.
	dir, err := filepath.EvalSymlinks(filepath.Dir(r.config.Preferred))
	return filepath.Join(dir, filepath.Base(r.config.Preferred)), fault.Cause(err)
}

// add writes a chunk.
func (t *transfer) add(in *pb.AgentUpdateRequest) error {
	size := t.size.Load() + uint64(len(in.BinaryData))
	switch {
	case size > t.total:
		return fault.Invalid("%d bytes came, and total_size is %d", size, t.total)
	case in.IsLastChunk && size != t.total:
		return fault.Invalid("the last chunk came after %d bytes, and total_size is %d", size, t.total)
	case len(in.BinaryData) == 0 && !in.IsLastChunk:
		return fault.Invalid("chunk %d is empty", in.ChunkNumber)
	}
	if err := t.stage.write(in.BinaryData); err != nil {
		return err
	}
	t.size.Store(size)
	t.next, t.last = t.next+1, time.Now()
	return nil
}

func (t *transfer) percent() uint32 { return uint32(t.size.Load() * 100 / max(t.total, 1)) }

// close ends a transfer and removes what it left.
func (t *transfer) close() error { return t.stage.remove() }

// drop ends a transfer, and returns err with what could not be removed.
func (r *Room) drop(t *transfer, err error) error {
	r.mu.Lock()
	if r.transfer == t {
		r.transfer = nil
	}
	r.mu.Unlock()
	if left := t.close(); left != nil && !errors.Is(left, fs.ErrNotExist) {
		if err == nil {
			return left
		}
		return fmt.Errorf("%w; %s stays: %v", err, filepath.Join(t.stage.path, programName), left)
	}
	_ = removeNote(r.config.State, transferFile) // a note of nothing does no harm
	return err
}

// sessionClosed drops the transfer of a host that has left, once no request is served any more.
func (r *Room) sessionClosed(port, session string) {
	r.mu.Lock()
	of := r.transfer != nil && r.transfer.port == port && r.transfer.session == session
	r.mu.Unlock()
	if !of {
		return
	}
	r.work.Go(func() {
		r.turn.Lock()
		defer r.turn.Unlock()
		r.mu.Lock()
		t := r.transfer
		r.mu.Unlock()
		if t != nil && t.port == port && t.session == session {
			_ = r.drop(t, nil)
		}
	})
}

// short returns the beginning of a text that may be long.
func short(s string) string {
	const limit = 64
	if len(s) > limit {
		return fmt.Sprintf("%q…", s[:limit])
	}
	return fmt.Sprintf("%q", s)
}
