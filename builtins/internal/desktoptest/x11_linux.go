package desktoptest

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// xorgConfig is for the dummy driver, which has the outputs DUMMY0 to DUMMY15 and shows them to nobody.
const xorgConfig = `
Section "ServerFlags"
  Option "AutoAddDevices" "false"
  Option "AutoEnableDevices" "false"
  Option "DontVTSwitch" "true"
EndSection
Section "Device"
  Identifier "device"
  Driver "dummy"
  VideoRam 256000
EndSection
Section "Monitor"
  Identifier "monitor"
  HorizSync 5.0 - 1000.0
  VertRefresh 5.0 - 1000.0
EndSection
Section "Screen"
  Identifier "screen"
  Device "device"
  Monitor "monitor"
  DefaultDepth 24
  SubSection "Display"
    Depth 24
    Virtual 1024 768
  EndSubSection
EndSection
`

// Xvfb starts an X server whose screen is in memory, of the size WIDTHxHEIGHT. It has one output, called screen.
func Xvfb(t testing.TB, size string) *Session {
	t.Helper()
	Need(t, "Xvfb", "xvfb")
	s := newSession(t)
	s.startX(t, "Xvfb", "-screen", "0", size+"x24", "-nolisten", "tcp", "-noreset")
	return s
}

// XvfbWithCookie starts such a server that wants a cookie of 16 bytes from its clients. It is in the file XAUTHORITY of the
// session.
func XvfbWithCookie(t testing.TB, size string, cookie [16]byte) *Session {
	t.Helper()
	Need(t, "Xvfb", "xvfb")
	s := newSession(t)
	const entry = "\xff\xff\x00\x00\x00\x00\x00\x12MIT-MAGIC-COOKIE-1\x00\x10" // of any machine and display
	path := filepath.Join(s.Dir, "xauthority")
	if err := os.WriteFile(path, append([]byte(entry), cookie[:]...), 0o644); err != nil {
		t.Fatal(err)
	}
	s.startX(t, "Xvfb", "-screen", "0", size+"x24", "-nolisten", "tcp", "-noreset", "-auth", path)
	s.Set("XAUTHORITY", path)
	return s
}

// Xorg starts X.Org's server with the dummy driver, with DUMMY0 of 1024x768. It takes its own configuration from root alone.
func Xorg(t testing.TB) *Session {
	t.Helper()
	const program = "/usr/lib/xorg/Xorg" // Xorg itself is a script that looks for a console
	if _, err := os.Stat(program); err != nil {
		t.Skip("Xorg is not installed (apt-get install --no-install-recommends xserver-xorg-core xserver-xorg-video-dummy)")
	}
	if drivers, _ := filepath.Glob("/usr/lib/xorg/modules/drivers/dummy_drv.so"); drivers == nil {
		t.Skip("the dummy driver is not installed (apt-get install --no-install-recommends xserver-xorg-video-dummy)")
	}
	if os.Getuid() != 0 {
		t.Skip("Xorg takes a configuration from root alone: run the test as root")
	}
	s := newSession(t)
	s.UID, s.GID = 0, 0
	config := filepath.Join(s.Dir, "xorg.conf")
	if err := os.WriteFile(config, []byte(xorgConfig), 0o644); err != nil {
		t.Fatal(err)
	}
	s.startX(t, program, "-config", config, "-logfile", filepath.Join(s.Dir, "Xorg.0.log"), "-nolisten", "tcp", "-noreset",
		"-novtswitch", "-sharevts")
	return s
}

// startX starts an X server on a display that it finds itself, and sets DISPLAY.
func (s *Session) startX(t testing.TB, argv ...string) *exec.Cmd {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := s.Command(t.Context(), append(argv, "-displayfd", "3")...)
	cmd.Cancel = func() error { return nil } // it is ended after the test
	cmd.ExtraFiles = []*os.File{w}
	number := make(chan string, 1)
	go func() {
		defer close(number)
		if line, err := bufio.NewReader(r).ReadString('\n'); err == nil {
			number <- ":" + strings.TrimSpace(line)
		}
	}()
	display := ""
	s.startCommand(t, func() bool {
		select {
		case display = <-number:
		default:
		}
		return display != ""
	}, cmd)
	w.Close()
	s.Set("DISPLAY", display)
	s.Set("XDG_SESSION_TYPE", "x11")
	return cmd
}
