package packages

import (
	"context"
	"errors"
	"strings"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// The types of programs on Windows: those that its installer knows, and those with an uninstaller of their own.
const (
	MSI = "msi"
	EXE = "exe"
)

// uninstall is the key below which a program says how it is uninstalled.
const uninstall = `Software\Microsoft\Windows\CurrentVersion\Uninstall`

// ownDatabases are those of Windows: of the running machine, whatever tree the reader is for.
func ownDatabases() []database {
	read := func(kind string) func(r *Reader, ctx context.Context) (*result, error) {
		return func(r *Reader, ctx context.Context) (*result, error) { return readUninstall(ctx, kind) }
	}
	there := func(r *Reader) bool { return r.Live }
	return []database{{kind: MSI, there: there, read: read(MSI)}, {kind: EXE, there: there, read: read(EXE)}}
}

// readUninstall reads the programs of all users and of those whose part of the registry is loaded, of both views: programs
// of 32 bits have one of their own.
func readUninstall(ctx context.Context, kind string) (*result, error) {
	out := &result{}
	views := []struct {
		arch   string
		access uint32
	}{{nativeArch(), registry.WOW64_64KEY}, {"x86", registry.WOW64_32KEY}}
	for _, view := range views {
		if err := out.readKey(ctx, registry.LOCAL_MACHINE, uninstall, kind, view.arch, view.access); err != nil {
			return nil, err
		}
	}
	users, err := registry.OpenKey(registry.USERS, "", registry.ENUMERATE_SUB_KEYS)
	if err != nil {
		out.warn("HKU", err)
		return out, nil
	}
	defer users.Close()
	names, err := users.ReadSubKeyNames(-1)
	if err != nil {
		out.warn("HKU", err)
	}
	for _, sid := range names {
		if strings.HasSuffix(sid, "_Classes") || sid == ".DEFAULT" {
			continue
		}
		// Per-user programs have one list, whatever they are built for.
		if err := out.readKey(ctx, registry.USERS, sid+`\`+uninstall, kind, "", registry.WOW64_64KEY); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// nativeArch is the architecture of the 64-bit view, by the name that the contract has for it.
func nativeArch() string {
	var process, machine uint16
	if windows.IsWow64Process2(windows.CurrentProcess(), &process, &machine) == nil &&
		machine == 0xaa64 { // IMAGE_FILE_MACHINE_ARM64
		return "aarch64"
	}
	return "x86_64"
}

// readKey reads the programs below a key. A view that Windows does not have shows the other's: what is there already is not
// added.
func (out *result) readKey(ctx context.Context, root registry.Key, path, kind, arch string, view uint32) error {
	key, err := registry.OpenKey(root, path, registry.ENUMERATE_SUB_KEYS|view)
	if errors.Is(err, registry.ErrNotExist) {
		return nil
	}
	if err != nil {
		out.warn(path, fault.Cause(err))
		return nil
	}
	defer key.Close()
	names, err := key.ReadSubKeyNames(-1)
	if err != nil {
		out.warn(path, fault.Cause(err))
	}
	for _, name := range names {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		program, err := registry.OpenKey(key, name, registry.QUERY_VALUE|view)
		if err != nil {
			out.warn(path+`\`+name, fault.Cause(err))
			continue
		}
		p, ok := readProgram(program, name)
		program.Close()
		if !ok || p.Type != kind {
			continue
		}
		p.Arch = arch
		if err := out.add(p); err != nil {
			return err
		}
	}
	return nil
}

// readProgram reads one program; false: it is none that Windows would list, but an update of one or a part of Windows.
func readProgram(key registry.Key, id string) (p Package, ok bool) {
	text := func(name string) string {
		value, _, _ := key.GetStringValue(name)
		return strings.TrimSpace(value)
	}
	number := func(name string) uint64 {
		value, _, _ := key.GetIntegerValue(name)
		return value
	}
	p = Package{
		Type: EXE, Name: text("DisplayName"), Version: text("DisplayVersion"), Publisher: text("Publisher"),
		Summary: text("Comments"),
		Size:    number("EstimatedSize") << 10, // which is in KiB
	}
	if number("WindowsInstaller") == 1 {
		p.Type = MSI
	}
	if p.Name == "" || number("SystemComponent") == 1 || text("ParentKeyName") != "" || text("ReleaseType") == "Security Update" {
		return p, false
	}
	if day, err := time.Parse("20060102", text("InstallDate")); err == nil {
		p.Installed = day
	}
	p.Provides = []string{id}
	return p, true
}
