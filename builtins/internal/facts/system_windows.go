package facts

import (
	"context"
	"os"
	"runtime"

	"github.com/shirou/gopsutil/v3/host"
	"github.com/shirou/gopsutil/v3/process"
	"golang.org/x/sys/windows/registry"

	"github.com/quantix-kvm/guest-agent/builtins/internal/smbios"
)

// ReadRelease returns the product name and version of the running system.
func ReadRelease(ctx context.Context, _ string) Release {
	name, _, version, err := host.PlatformInformationWithContext(ctx)
	if err != nil {
		return Release{ID: "windows"}
	}
	return Release{Name: name, Version: version, ID: "windows"}
}

// MachineID returns the MachineGuid of the installation; empty if it cannot be read.
func MachineID(string) string {
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, `SOFTWARE\Microsoft\Cryptography`, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if err != nil {
		return ""
	}
	defer key.Close()
	id, _, _ := key.GetStringValue("MachineGuid")
	return id
}

// Hostname returns the name of the guest.
func Hostname(string) string {
	name, _ := os.Hostname()
	return name
}

// ProductUUID returns the UUID of the machine in the SMBIOS tables, as Linux writes it; empty: there is none.
func ProductUUID() string {
	for _, s := range smbios.Read("/") {
		if s.Kind == smbios.System {
			return s.UUID(8)
		}
	}
	return ""
}

// Kernel returns the version of the running kernel and the architecture by its Linux name.
func Kernel() (release, machine string) {
	release, _ = host.KernelVersion()
	machine = runtime.GOARCH
	switch machine {
	case "amd64":
		machine = "x86_64"
	case "arm64":
		machine = "aarch64"
	}
	return release, machine
}

// Processes counts processes.
func Processes(ctx context.Context) (int, error) {
	pids, err := process.PidsWithContext(ctx)
	return len(pids), err
}

// Load returns 0: Windows has no load averages.
func Load(context.Context) (one, five, fifteen float64) { return 0, 0, 0 }

// CPUs counts the processors.
func CPUs() int { return runtime.NumCPU() }
