package inventory

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/smbios"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

const canReadHardware = true

// maxText bounds a text that is read of the hardware, in bytes.
const maxText = 1024

// reader is what is known from call to call.
type reader struct{ disks *facts.Disks }

func newReader() reader { return reader{&facts.Disks{}} }

// machine reads the files in which the kernel describes the hardware.
type machine struct {
	root string // "/"; another directory in tests
}

// readHardware reads what is asked for. What cannot be read is left empty.
func (r *Room) readHardware(ctx context.Context, in *pb.GetHardwareInfoRequest) (*pb.HardwareInfo, error) {
	m := machine{"/"}
	disks, err := r.disks.Read(ctx)
	if err != nil {
		disks = nil // what is used is not known then
	}
	tables := smbios.Read(m.root)
	hardware := &pb.HardwareInfo{
		Cpu: m.cpu(ctx, in.IncludeCpuDetails, tables), Memory: memory(ctx, tables), Bios: m.bios(),
		Disks: m.blockDevices(disks, in.IncludeDiskDetails), Gpus: m.gpus(), Os: m.system(ctx),
	}
	if links, err := facts.Links(); err == nil {
		hardware.NetworkAdapters = m.adapters(links, in.IncludeNetworkDetails)
	}
	return hardware, context.Cause(ctx)
}

// path returns the path of a file of the kernel's.
func (m machine) path(elements ...string) string {
	return filepath.Join(m.root, filepath.Join(elements...))
}

// read returns the text of a file of the kernel's without blanks around it; empty where it cannot be read.
func (m machine) read(elements ...string) string {
	content, err := os.ReadFile(m.path(elements...))
	if err != nil {
		return ""
	}
	clean, _ := text.ToValidUTF8Max(strings.TrimSpace(strings.TrimRight(string(content), "\x00")), maxText)
	return clean
}

// number returns the number in a file; 0 where there is none.
func (m machine) number(elements ...string) uint64 {
	n, err := strconv.ParseUint(m.read(elements...), 0, 64)
	if err != nil {
		return 0
	}
	return n
}

// list returns the names in a directory; none where it cannot be read.
func (m machine) list(elements ...string) (names []string) {
	entries, _ := os.ReadDir(m.path(elements...)) // sorted
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// link returns the last element of where a link leads; empty where there is none.
func (m machine) link(elements ...string) string {
	target, err := os.Readlink(m.path(elements...))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

// real returns where a path leads, without the root; empty where nothing is.
func (m machine) real(elements ...string) string {
	path, err := filepath.EvalSymlinks(m.path(elements...))
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(path, strings.TrimSuffix(m.root, "/"))
}

// bios reads what the kernel has taken from SMBIOS. Serial number and UUID are root's alone. Where there is no SMBIOS the
// device tree may name the machine.
func (m machine) bios() *pb.BiosInfo {
	id := func(name string) string { return m.read("sys/class/dmi/id", name) }
	b := &pb.BiosInfo{
		Vendor: id("bios_vendor"), Version: id("bios_version"), ReleaseDate: id("bios_date"),
		SystemManufacturer: id("sys_vendor"), SystemProduct: id("product_name"), SystemSerial: id("product_serial"),
		SystemUuid: id("product_uuid"),
	}
	if b.SystemProduct == "" {
		b.SystemProduct = m.read("proc/device-tree/model")
	}
	return b
}

// system reports the operating system. It asks no name server.
func (m machine) system(ctx context.Context) *pb.OsInfo {
	release := facts.ReadRelease(ctx, m.root)
	kernel, architecture := facts.Kernel()
	info := &pb.OsInfo{
		Name: release.Name, Version: release.Version, Build: m.build(), Kernel: kernel, Architecture: architecture,
		Hostname: facts.Hostname(m.root), InstallDate: m.born(), LastBoot: m.booted(),
	}
	info.Domain = m.domain(info.Hostname)
	return info
}

// build returns BUILD_ID or IMAGE_VERSION of os-release; of Debian, which has neither, the number with the point release.
func (m machine) build() string {
	for _, file := range []string{"etc/os-release", "usr/lib/os-release"} {
		content, err := os.ReadFile(m.path(file))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(content)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			if key == "BUILD_ID" || key == "IMAGE_VERSION" {
				clean, _ := text.ToValidUTF8Max(strings.Trim(value, `"'`), maxText)
				return clean
			}
		}
		break
	}
	return m.read("etc/debian_version")
}

// born returns when the root file system was made, which is when the system, or the image that it came from, was installed; nil
// where the file system does not know.
func (m machine) born() *timestamppb.Timestamp {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, m.root, unix.AT_STATX_DONT_SYNC, unix.STATX_BTIME, &st); err != nil {
		return nil
	}
	if st.Mask&unix.STATX_BTIME == 0 || st.Btime.Sec <= 0 {
		return nil
	}
	return timestamppb.New(time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)))
}

// booted returns when the kernel was started, by its present clock.
func (m machine) booted() *timestamppb.Timestamp {
	content, err := os.ReadFile(m.path("proc/stat"))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(content)) {
		if value, ok := strings.CutPrefix(line, "btime "); ok {
			if at, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err == nil {
				return timestamppb.New(time.Unix(at, 0))
			}
		}
	}
	return nil
}

// domain returns the part of the full name after the host's: of the host name itself, of /etc/hosts, or the NIS domain.
func (m machine) domain(host string) string {
	if _, domain, ok := strings.Cut(host, "."); ok {
		return domain
	}
	content, _ := os.ReadFile(m.path("etc/hosts"))
	for line := range strings.Lines(string(content)) {
		line, _, _ = strings.Cut(line, "#")
		names := strings.Fields(line)
		for i := 1; i < len(names) && host != ""; i++ {
			if domain, ok := strings.CutPrefix(names[i], host+"."); ok {
				clean, _ := text.ToValidUTF8Max(domain, maxText)
				return clean
			}
		}
	}
	if domain := m.read("proc/sys/kernel/domainname"); domain != "(none)" {
		return domain
	}
	return ""
}
