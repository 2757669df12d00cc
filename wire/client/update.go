package client

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Update is a new version of the agent.
type Update struct {
	// Version is the version that its signature names. Required.
	Version string
	// Signature is the text of its file of minisign. Required.
	Signature []byte
	// AllowDowngrade installs it also where it is older than the present one. OverridePackage installs it before an agent that
	// belongs to a package of the guest.
	AllowDowngrade, OverridePackage bool
	// Progress is called with how far it is. Optional.
	Progress Progress
}

// updateChunk is how many bytes of a program a request has.
const updateChunk = 256 << 10

// busyPause is how long is waited where a script of the guest keeps the agent from being replaced.
const busyPause = time.Second

// Update sends a program, and returns when the agent has verified it and is about to restart: see UpdateOutcome. While a script
// of the guest runs it waits, within ctx. An error of the agent is returned as any other one, and then nothing is changed.
func (c *Client) Update(ctx context.Context, program io.ReadSeeker, u Update) (*pb.AgentUpdateResponse, error) {
	hash := sha256.New()
	size, err := io.Copy(hash, program)
	if err == nil {
		_, err = program.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, err
	}
	if size == 0 {
		return nil, fault.Invalid("the program is empty")
	}
	transfer, buffer := rand.Text(), make([]byte, updateChunk)
	var reply *pb.AgentUpdateResponse
	for number, done := uint32(0), int64(0); done < size; number++ {
		n, err := io.ReadFull(program, buffer[:min(updateChunk, size-done)])
		if err != nil {
			return nil, fmt.Errorf("read the program: %w", err)
		}
		done += int64(n)
		request := &pb.AgentUpdateRequest{
			TargetVersion: u.Version, BinaryData: buffer[:n], ChunkNumber: number, IsLastChunk: done == size, Transfer: transfer,
		}
		if number == 0 {
			request.ChecksumSha256, request.TotalSize = hex.EncodeToString(hash.Sum(nil)), uint64(size)
			request.Signature, request.AllowDowngrade, request.OverridePackage = u.Signature, u.AllowDowngrade, u.OverridePackage
		}
		for {
			reply, err = Call[*pb.AgentUpdateResponse](ctx, c, request)
			if !request.IsLastChunk || !errors.Is(err, fault.ErrBusy) {
				break
			}
			select { // the agent has not taken it
			case <-ctx.Done():
				return nil, errors.Join(context.Cause(ctx), err)
			case <-time.After(busyPause):
			}
		}
		if err != nil {
			return nil, err
		}
		if u.Progress != nil {
			u.Progress(done, size)
		}
	}
	return reply, nil
}

// UpdateOutcome returns what became of the update to a version, as a status has it; nil: nothing yet.
func UpdateOutcome(s *pb.GetStatusResponse, version string, since *pb.UpdateOutcome) *pb.UpdateOutcome {
	last := s.GetUpdate().GetLast()
	if last.GetVersion() != version || last.GetAt().AsTime().Equal(since.GetAt().AsTime()) {
		return nil
	}
	return last
}
