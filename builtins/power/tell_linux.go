package power

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
)

// utmpFile is where the C library notes who is logged in; newer systems have logind alone.
const utmpFile = "/run/utmp"

// What a record of utmp has (utmp(5), glibc's bits/utmp.h): the type, a short, and the line, at lineAt. The size depends on
// whether the times in it have 32 bits.
const (
	userProcess = 7 // the type of the record of who is logged in
	lineAt      = 8
	lineSize    = 32
	maxUtmp     = 4 << 20
)

func utmpRecord() int {
	if runtime.GOARCH == "amd64" {
		return 384
	}
	return 400
}

// utmpLines returns the terminals in a file of utmp, as names below /dev.
func utmpLines(file string) (lines []string) {
	text, err := os.ReadFile(file)
	if err != nil || len(text) > maxUtmp {
		return nil
	}
	for size := utmpRecord(); len(text) >= size; text = text[size:] {
		if binary.NativeEndian.Uint16(text) != userProcess {
			continue
		}
		line, _, _ := bytes.Cut(text[lineAt:lineAt+lineSize], []byte{0})
		lines = append(lines, string(line))
	}
	return lines
}

// logindLines returns the terminals of the sessions that logind knows, as names below /dev.
func logindLines(ctx context.Context) (lines []string) {
	bus, err := sysbus.Open(ctx)
	if err != nil {
		return nil
	}
	defer bus.Close()
	var sessions []struct {
		ID   string
		UID  uint32
		User string
		Seat string
		Path dbus.ObjectPath
	}
	if bus.Call(ctx, logind, logindPath, logind+".Manager.ListSessions", []any{&sessions}) != nil {
		return nil
	}
	for _, s := range sessions {
		var line string
		if bus.Property(ctx, logind, s.Path, logind+".Session", "TTY", &line) == nil && line != "" {
			lines = append(lines, strings.TrimPrefix(line, "/dev/"))
		}
	}
	return lines
}

// tellUsers writes to the terminal of each user who is logged in.
func tellUsers(ctx context.Context, text string) {
	lines := utmpLines(utmpFile)
	if sysbus.Available() {
		lines = append(lines, logindLines(ctx)...)
	}
	slices.Sort(lines)
	name, _ := os.Hostname()
	at := time.Now().Format(time.TimeOnly)
	text = fmt.Sprintf("\r\n\aMessage from quantix-kvm-agent on %s at %s:\r\n\r\n%s\r\n", printable(name), at, text)
	for _, line := range slices.Compact(lines) {
		writeTerminal(line, text)
	}
}

// writeTerminal writes to a terminal below /dev, as far as it takes the text at once.
func writeTerminal(line, text string) {
	path := filepath.Join("/dev", line)
	if !strings.HasPrefix(path, "/dev/") || !isCharDevice(path) {
		return
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil { // it is one
		_, _ = unix.Write(fd, []byte(text))
	}
}
