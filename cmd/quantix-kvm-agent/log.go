package main

import (
	"fmt"
	"os"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/quantix-kvm/guest-agent/runtime/config"
)

// newLog makes the logger: JSON or console, to stderr or to a file that is rotated by size.
func newLog(c config.Config, level string) (*zap.Logger, error) {
	if level == "" {
		level = c.LogLevel
	}
	if level == "trace" { // zap knows none
		level = "debug"
	}
	at, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, fmt.Errorf("log level: %w", err)
	}
	format := zap.NewProductionEncoderConfig()
	format.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	encoder := zapcore.NewJSONEncoder(format)
	if c.LogFormat == "pretty" && c.LogFile == "" {
		encoder = zapcore.NewConsoleEncoder(format)
	}
	var sink zapcore.WriteSyncer = zapcore.Lock(os.Stderr)
	if c.LogFile != "" {
		sink = zapcore.AddSync(&lumberjack.Logger{
			Filename: c.LogFile, MaxBackups: c.LogMaxFiles,
			MaxSize: int(max(1, c.LogMaxSize>>20)), // in MiB
		})
	}
	return zap.New(zapcore.NewCore(encoder, sink, at)), nil
}
