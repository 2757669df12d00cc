package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/quantix-kvm/guest-agent/runtime/config"
)

// logger is the log, with what can change while the agent runs, and its last warnings and errors.
type logger struct {
	*zap.Logger
	level  zap.AtomicLevel
	pinned bool // the level is the command line's, and stays
	recent *recentLog
	audit  *zap.Logger // writes whatever the level is
	out    *logQueue
}

// newLog returns the logger: JSON or console, to stderr or to a file that is rotated by size. A level that is not empty
// overrides that of the configuration. Where also is not nil, all goes there as well.
func newLog(c config.Config, level string, also zapcore.Core) (*logger, error) {
	l := &logger{level: zap.NewAtomicLevel(), pinned: level != "", recent: &recentLog{}}
	if level == "" {
		level = c.LogLevel
	}
	if err := l.set(level); err != nil {
		return nil, err
	}
	sink, toJournal := zapcore.Lock(os.Stderr), false
	if c.LogFile != "" {
		sink = zapcore.AddSync(&lumberjack.Logger{
			Filename: c.LogFile, MaxBackups: c.LogMaxFiles,
			MaxSize: int(max(1, c.LogMaxSize>>20)), // in MiB
		})
	} else {
		toJournal = stderrIsJournal()
	}
	l.out = newLogQueue(sink)
	sink = l.out
	encoder := newEncoder(c.LogFormat == "pretty" && c.LogFile == "", toJournal)
	cores := []zapcore.Core{zapcore.NewCore(encoder, sink, l.level), &recentCore{to: l.recent}}
	if also != nil {
		cores = append(cores, also)
	}
	l.Logger = zap.New(zapcore.NewTee(cores...))
	l.audit = zap.New(zapcore.NewCore(newEncoder(false, toJournal), sink, zapcore.InfoLevel))
	return l, nil
}

// checkLogFile refuses a log file that is none, as a link, and a directory where any user could put something else in its
// place.
func checkLogFile(path string) error {
	if path == "" {
		return nil
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("log_file: %w", err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("log_file %s: not a regular file", path)
	}
	dir, err := os.Stat(filepath.Dir(path))
	switch {
	case errors.Is(err, fs.ErrNotExist): // it will be made
	case err != nil:
		return fmt.Errorf("log_file: %w", err)
	case runtime.GOOS != "windows" && dir.Mode().Perm()&0o002 != 0:
		return fmt.Errorf("log_file %s: any user can write to its directory, and could plant a link there", path)
	}
	return nil
}

// newEncoder returns what makes lines. For the journal of systemd they begin with their priority; in the console form they then
// lack the time and the level, which the journal knows.
func newEncoder(console, journal bool) zapcore.Encoder {
	format := zap.NewProductionEncoderConfig()
	format.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	if console && journal {
		format.TimeKey, format.LevelKey = zapcore.OmitKey, zapcore.OmitKey
	}
	encoder := zapcore.NewJSONEncoder(format)
	if console {
		encoder = zapcore.NewConsoleEncoder(format)
	}
	if journal {
		encoder = priorityEncoder{encoder}
	}
	return encoder
}

// set changes the level.
func (l *logger) set(level string) error {
	if level == "trace" { // zap knows none
		level = "debug"
	}
	at, err := zapcore.ParseLevel(level)
	if err != nil {
		return fmt.Errorf("log level: %w", err)
	}
	l.level.SetLevel(at)
	return nil
}

// change puts the level of a configuration into force, unless the command line has said one.
func (l *logger) change(c config.Config) {
	if l.pinned {
		return
	}
	if err := l.set(c.LogLevel); err != nil {
		l.Warn("cannot change log level", zap.Error(err))
	}
}

// priorityEncoder puts the syslog priority before a line as sd-daemon(3) wants it, so that journalctl -p finds what is bad.
type priorityEncoder struct{ zapcore.Encoder }

// Clone implements zapcore.Encoder.
func (p priorityEncoder) Clone() zapcore.Encoder { return priorityEncoder{p.Encoder.Clone()} }

// EncodeEntry implements zapcore.Encoder.
func (p priorityEncoder) EncodeEntry(entry zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	line, err := p.Encoder.EncodeEntry(entry, fields)
	if err != nil {
		return nil, err
	}
	defer line.Free()
	with := buffers.Get()
	fmt.Fprintf(with, "<%d>", syslogLevel(entry.Level))
	with.Write(line.Bytes())
	return with, nil
}

var buffers = buffer.NewPool()

// syslogLevel returns a level as syslog(3) numbers it.
func syslogLevel(level zapcore.Level) int {
	switch {
	case level >= zapcore.DPanicLevel:
		return 2
	case level == zapcore.ErrorLevel:
		return 3
	case level == zapcore.WarnLevel:
		return 4
	case level == zapcore.InfoLevel:
		return 6
	}
	return 7
}
