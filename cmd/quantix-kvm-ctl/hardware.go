package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) hardwareCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "hardware",
		Short: "show the hardware and the system of the guest",
		Long: `hardware shows what the guest consists of, as its kernel and its firmware describe it: processors, memory, disks with their
partitions, network and graphics adapters, and the system. A disk is shown whether something is mounted of it or not.

With --json: HardwareInfo, and in it what is not shown otherwise, such as the flags of the processors.`,
		Example: `  quantix-kvm-ctl hardware
  quantix-kvm-ctl hardware --json | jq -r '.disks[] | .device + " " + (.size_bytes | tostring)'`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), requestTimeout, a.hardware)
		},
	}
}

func (a *app) hardware(s *session) error {
	h, err := s.Hardware(s.ctx, &pb.GetHardwareInfoRequest{
		IncludeCpuDetails: true, IncludeDiskDetails: true, IncludeNetworkDetails: true,
	})
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(h)
	}
	for _, part := range [][][]string{machineRows(h), diskRows(h.Disks), adapterRows(h.NetworkAdapters), gpuRows(h.Gpus)} {
		if len(part) == 0 {
			continue
		}
		if err := table(a.stdout, part); err != nil {
			return err
		}
	}
	return nil
}

// machineRows are names and values of what there is one of. What is not known has no row.
func machineRows(h *pb.HardwareInfo) (rows [][]string) {
	add := func(name string, words ...string) {
		if value := joined(words...); value != "" {
			rows = append(rows, []string{name, value})
		}
	}
	cpu, memory, bios, system := h.GetCpu(), h.GetMemory(), h.GetBios(), h.GetOs()
	add("machine", bios.GetSystemManufacturer(), bios.GetSystemProduct())
	add("serial", bios.GetSystemSerial())
	add("uuid", bios.GetSystemUuid())
	add("firmware", bios.GetVendor(), bios.GetVersion(), bios.GetReleaseDate())
	add("processors", cpu.GetModel(), parenthesis(strings.Join([]string{plural(int(cpu.GetSockets()), "socket"),
		plural(int(cpu.GetCores()), "core"), plural(int(cpu.GetThreads()), "thread"), cpu.GetArchitecture()}, ", ")))
	if cpu.GetFrequencyMhz() > 0 {
		add("frequency", strconv.FormatFloat(cpu.GetFrequencyMhz(), 'f', 0, 64), "MHz")
	}
	for i, n := range []uint64{cpu.GetL1CacheBytes(), cpu.GetL2CacheBytes(), cpu.GetL3CacheBytes()} {
		if n > 0 {
			add(fmt.Sprintf("cache L%d", i+1), size(n))
		}
	}
	add("memory", size(memory.GetTotalBytes()), parenthesis(size(memory.GetAvailableBytes())+" available"))
	if memory.GetInstalledBytes() > 0 {
		speed := ""
		if memory.GetSpeedMhz() > 0 {
			speed = fmt.Sprintf("%d MT/s", memory.GetSpeedMhz())
		}
		add("installed", size(memory.GetInstalledBytes()), fmt.Sprintf("in %d modules", memory.GetDimmCount()), memory.GetMemoryType(), speed)
	}
	add("system", system.GetName(), system.GetVersion(), parenthesis(system.GetBuild()))
	add("kernel", system.GetKernel(), system.GetArchitecture())
	add("host name", joined(system.GetHostname()), parenthesis(system.GetDomain()))
	if system.GetInstallDate() != nil {
		add("installed at", at(system.GetInstallDate()))
	}
	add("booted at", at(system.GetLastBoot()))
	return rows
}

// diskRows are the disks, and below each its partitions.
func diskRows(disks []*pb.DiskInfo) (rows [][]string) {
	for _, d := range disks {
		rows = append(rows, []string{
			d.Device, size(d.SizeBytes), joined(d.DiskType, d.Interface, virtual(d.IsVirtual)), joined(d.Model, d.Serial), "", "",
		})
		for _, p := range d.Partitions {
			used := ""
			if p.MountPoint != "" {
				used = size(p.UsedBytes) + " used"
			}
			rows = append(rows, []string{"  " + p.Device, size(p.SizeBytes), dash(p.Filesystem), dash(p.Label), dash(p.MountPoint), used})
		}
	}
	return headed(rows, "DISK", "SIZE", "TYPE", "NAME", "MOUNTED", "")
}

func adapterRows(adapters []*pb.NetworkAdapterInfo) (rows [][]string) {
	for _, n := range adapters {
		speed := "-"
		if n.SpeedMbps > 0 {
			speed = fmt.Sprintf("%d Mb/s", n.SpeedMbps)
		}
		rows = append(rows, []string{
			n.Name, dash(n.MacAddress), joined(n.AdapterType, virtual(n.IsVirtual)), speed, dash(n.Driver), dash(n.PciAddress),
		})
	}
	return headed(rows, "NETWORK", "ADDRESS", "TYPE", "SPEED", "DRIVER", "PCI")
}

func gpuRows(gpus []*pb.GpuInfo) (rows [][]string) {
	for _, g := range gpus {
		memory := "-"
		if g.VramBytes > 0 {
			memory = size(g.VramBytes)
		}
		rows = append(rows, []string{g.Name, dash(g.Vendor), memory, dash(joined(g.Driver, g.DriverVersion)), dash(g.PciAddress)})
	}
	return headed(rows, "GRAPHICS", "VENDOR", "MEMORY", "DRIVER", "PCI")
}

// headed puts a line of headings before rows, if there are any.
func headed(rows [][]string, names ...string) [][]string {
	if len(rows) == 0 {
		return nil
	}
	return append([][]string{names}, rows...)
}

// joined returns the words that are not empty with blanks between them.
func joined(words ...string) string {
	var list []string
	for _, word := range words {
		if word != "" {
			list = append(list, word)
		}
	}
	return strings.Join(list, " ")
}

func parenthesis(text string) string {
	if text == "" {
		return ""
	}
	return "(" + text + ")"
}

func virtual(is bool) string {
	if is {
		return "virtual"
	}
	return ""
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
