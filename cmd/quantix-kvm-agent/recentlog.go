package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap/zapcore"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Bounds of what get_status has of the log: it must fit into a small frame.
const (
	recentLines  = 20
	recentLength = 500 // bytes of a line
)

// recentLog keeps the last warnings and errors of the log.
type recentLog struct {
	mu    sync.Mutex
	lines []*pb.StatusLine
}

// add appends a line. The oldest one goes where there are enough.
func (l *recentLog) add(line *pb.StatusLine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) == recentLines {
		l.lines = slices.Delete(l.lines, 0, 1)
	}
	l.lines = append(l.lines, line)
}

// list returns the lines, oldest first.
func (l *recentLog) list() []*pb.StatusLine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// recentCore is the part of the log that fills a recentLog.
type recentCore struct {
	to     *recentLog
	fields []zapcore.Field
}

// Enabled implements zapcore.Core: what is no warning is not kept, whatever level is logged.
func (c *recentCore) Enabled(level zapcore.Level) bool { return level >= zapcore.WarnLevel }

// With implements zapcore.Core.
func (c *recentCore) With(fields []zapcore.Field) zapcore.Core {
	return &recentCore{c.to, slices.Concat(c.fields, fields)}
}

// Check implements zapcore.Core.
func (c *recentCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

// Write implements zapcore.Core.
func (c *recentCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	values := zapcore.NewMapObjectEncoder()
	for _, field := range slices.Concat(c.fields, fields) {
		field.AddTo(values)
	}
	text := entry.Message
	for _, name := range slices.Sorted(maps.Keys(values.Fields)) {
		if name != "stack" {
			text += fmt.Sprintf(" %s=%v", name, values.Fields[name])
		}
	}
	if len(text) > recentLength {
		text = strings.ToValidUTF8(text[:recentLength], "") + "…"
	}
	c.to.add(&pb.StatusLine{At: timestamppb.New(entry.Time), Level: entry.Level.String(), Message: text})
	return nil
}

// Sync implements zapcore.Core.
func (c *recentCore) Sync() error { return nil }
