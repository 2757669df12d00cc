package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// settingsFile is where the user's settings are: below $XDG_CONFIG_HOME, or ~/.config.
const settingsFile = "quantix-kvm/ctl.conf"

// settings are what a user need not write each time. Flags come before variables of the environment, and these before the file.
type settings struct {
	socket, vm string
	timeout    time.Duration
}

// readSettings reads the user's file; without one there are none.
func readSettings() (s settings, err error) {
	dir := os.Getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) { // as XDG has it
		home, err := os.UserHomeDir()
		if err != nil {
			return s, nil
		}
		dir = filepath.Join(home, ".config")
	}
	path := filepath.Join(dir, settingsFile)
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return s, nil
	}
	if _, unseen := os.Lstat(path); errors.Is(unseen, fs.ErrPermission) { // in a directory of somebody else, as with sudo -u
		return s, nil
	}
	if err != nil {
		return s, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := s.set(line); err != nil {
			return s, fmt.Errorf("%s:%d: %w", path, n, err)
		}
	}
	return s, lines.Err()
}

func (s *settings) set(line string) (err error) {
	key, value, ok := strings.Cut(line, "=")
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	if !ok || value == "" {
		return fmt.Errorf("%q is not key = value", line)
	}
	switch key {
	case "socket":
		s.socket = value
	case "vm":
		s.vm = value
	case "timeout":
		if s.timeout, err = time.ParseDuration(value); err != nil || s.timeout < 0 {
			return fmt.Errorf("timeout %s is no time such as 90s or 5m", value)
		}
	default:
		return fmt.Errorf("there is no setting %s; there are socket, timeout and vm", key)
	}
	return nil
}
