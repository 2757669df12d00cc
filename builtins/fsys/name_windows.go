package fsys

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// checkSystemPath refuses paths that Windows takes for something else than a file of a drive: of servers and devices, streams
// of a file, the names of devices, and names that would lose their last characters.
func checkSystemPath(path string) error {
	slashed := filepath.ToSlash(path)
	if strings.HasPrefix(slashed, "//") || strings.HasPrefix(slashed, "/??/") {
		return fault.Refuse("the path is of a server or a device; only those of drives are served")
	}
	for name := range strings.FieldsFuncSeq(path[len(filepath.VolumeName(path)):], isSeparatorRune) {
		if err := checkName(name); err != nil {
			return err
		}
	}
	return nil
}

// devices are the names that mean a device in each directory, also with an extension.
const devices = " CON PRN AUX NUL CONIN$ CONOUT$ " +
	"COM0 COM1 COM2 COM3 COM4 COM5 COM6 COM7 COM8 COM9 COM\u00b9 COM\u00b2 COM\u00b3 " +
	"LPT0 LPT1 LPT2 LPT3 LPT4 LPT5 LPT6 LPT7 LPT8 LPT9 LPT\u00b9 LPT\u00b2 LPT\u00b3 "

func checkName(name string) error {
	if name == "." || name == ".." {
		return nil
	}
	if strings.Contains(name, ":") {
		return fault.Refuse("%q names a stream of a file", name)
	}
	if strings.ContainsAny(name, `<>"|?*`) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' }) {
		return fault.Invalid("%q has a character that no name may have", name)
	}
	if last := name[len(name)-1]; last == '.' || last == ' ' {
		return fault.Refuse("%q ends with a dot or a space, which Windows drops", name)
	}
	base, _, _ := strings.Cut(name, ".")
	if strings.Contains(devices, " "+strings.ToUpper(strings.TrimRight(base, " "))+" ") {
		return fault.Refuse("%q is the name of a device", name)
	}
	return nil
}

// withVolume gives a path of the host without a drive that of the system, so that it does not depend on where the agent was
// started.
func withVolume(path string) string {
	if filepath.VolumeName(path) == "" {
		return os.Getenv("SystemDrive") + path
	}
	return path
}

// longPath is a clean path for calls of the system that the standard library does not make: without the limit of 260
// characters.
func longPath(path string) string {
	if len(path) < 248 || !filepath.IsAbs(path) || strings.HasPrefix(path, `\\`) {
		return path
	}
	return `\\?\` + path
}
