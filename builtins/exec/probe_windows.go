package exec

import (
	"context"
	"errors"
	"time"
)

// probe does not exist on Windows: no command freezes a file system there.
type probe struct{}

// quickProbe does not exist either.
type quickProbe struct{}

func (f *freezes) endQuick() { f.quick = nil }

func (*freezes) nothingFrozen(*Room, []string) bool { return false }

func mayFreeze() bool { return false }

func (r *Room) startProbe() (*probe, error) { return nil, errors.ErrUnsupported }

type probeRequest struct {
	Paths []string
	Stat  bool
}

func (*probe) ask(context.Context, probeRequest, time.Duration, time.Duration) map[int]bool {
	return nil
}

func (*probe) follow([]string, map[int]bool, func(string)) {}

func (*probe) rest() {}

func (*probe) reserve() bool { return false }

func (*probe) end() {}

func probeMain() bool { return false }
