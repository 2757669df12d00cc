package main

import (
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/runtime/config"
)

// programData is where configuration, state and logs are, and serviceLog the log of the service, whose configuration may name
// another one.
var (
	programData = filepath.Dir(config.DefaultFile)
	serviceLog  = filepath.Join(programData, "Logs", "agent.log")
)

// privateRights are full rights for administrators and the system, for what is below as well, and none for others: what the
// directory above grants to all users is not inherited.
const privateRights = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"

// privateDir makes a directory that only administrators and the system can read and write, and makes one that is there so.
func privateDir(path string) error {
	sd, err := windows.SecurityDescriptorFromString(privateRights)
	if err != nil {
		return fmt.Errorf("rights of %s: %w", path, err)
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	attributes := &windows.SecurityAttributes{SecurityDescriptor: sd}
	attributes.Length = uint32(unsafe.Sizeof(*attributes))
	switch err := windows.CreateDirectory(name, attributes); {
	case err == nil:
		return nil
	case err != windows.ERROR_ALREADY_EXISTS:
		return &os.PathError{Op: "make", Path: path, Err: err}
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() { // a link made by a user would lead elsewhere
		return fmt.Errorf("%s: it is no directory", path)
	}
	dacl, _, err := sd.DACL()
	if err == nil {
		err = windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT,
			windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, dacl, nil)
	}
	if err != nil {
		return fmt.Errorf("rights of %s: %w", path, err)
	}
	return nil
}

func asBytes(v *uint32) *byte { return (*byte)(unsafe.Pointer(v)) }

// eventCore is the part of the log that goes to the event log of Windows: warnings and errors.
type eventCore struct {
	zapcore.Encoder
	to eventWriter
}

// eventWriter is a source of the event log: *eventlog.Log but in tests.
type eventWriter interface {
	Error(number uint32, text string) error
	Warning(number uint32, text string) error
}

// eventNumber is the number of all events: their texts are their own.
const eventNumber = 1

// newEventCore returns a core that writes to a source of the event log.
func newEventCore(to eventWriter) zapcore.Core {
	return &eventCore{newEncoder(false, false), to}
}

// Enabled implements zapcore.Core.
func (c *eventCore) Enabled(level zapcore.Level) bool { return level >= zapcore.WarnLevel }

// With implements zapcore.Core.
func (c *eventCore) With(fields []zapcore.Field) zapcore.Core {
	with := c.Clone()
	for _, field := range fields {
		field.AddTo(with)
	}
	return &eventCore{with, c.to}
}

// Check implements zapcore.Core.
func (c *eventCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

// Write implements zapcore.Core.
func (c *eventCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	line, err := c.EncodeEntry(entry, fields)
	if err != nil {
		return err
	}
	defer line.Free()
	if entry.Level >= zapcore.ErrorLevel {
		return c.to.Error(eventNumber, line.String())
	}
	return c.to.Warning(eventNumber, line.String())
}

// Sync implements zapcore.Core.
func (c *eventCore) Sync() error { return nil }
