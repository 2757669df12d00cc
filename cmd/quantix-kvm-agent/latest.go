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

// Bounds of what get_status tells of the log: it must fit into a small frame.
const (
	latestLines  = 20
	latestLength = 500 // bytes of a line
)

// latest are the last warnings and errors of the log.
type latest struct {
	mu    sync.Mutex
	lines []*pb.StatusLine
}

func (l *latest) add(line *pb.StatusLine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) == latestLines {
		l.lines = slices.Delete(l.lines, 0, 1)
	}
	l.lines = append(l.lines, line)
}

func (l *latest) list() []*pb.StatusLine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// remember is the part of the log that fills a latest.
type remember struct {
	to     *latest
	fields []zapcore.Field
}

// Enabled implements zapcore.Core: what is no warning is not kept, whatever level is logged.
func (r *remember) Enabled(level zapcore.Level) bool { return level >= zapcore.WarnLevel }

// With implements zapcore.Core.
func (r *remember) With(fields []zapcore.Field) zapcore.Core {
	return &remember{r.to, slices.Concat(r.fields, fields)}
}

// Check implements zapcore.Core.
func (r *remember) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if r.Enabled(entry.Level) {
		return checked.AddCore(entry, r)
	}
	return checked
}

// Write implements zapcore.Core.
func (r *remember) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	values := zapcore.NewMapObjectEncoder()
	for _, field := range slices.Concat(r.fields, fields) {
		field.AddTo(values)
	}
	text := entry.Message
	for _, name := range slices.Sorted(maps.Keys(values.Fields)) {
		if name != "stack" {
			text += fmt.Sprintf(" %s=%v", name, values.Fields[name])
		}
	}
	if len(text) > latestLength {
		text = strings.ToValidUTF8(text[:latestLength], "") + "…"
	}
	r.to.add(&pb.StatusLine{At: timestamppb.New(entry.Time), Level: entry.Level.String(), Message: text})
	return nil
}

// Sync implements zapcore.Core.
func (r *remember) Sync() error { return nil }
