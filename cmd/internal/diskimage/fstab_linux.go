package diskimage

import (
	"path"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// mountLine is a line of an fstab.
type mountLine struct {
	source, target, kind string
	options              []string
}

// diskTypes are the file systems that an image can have and that are mounted.
var diskTypes = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "auto"}

// parseFstab returns the lines that mount a file system of a disk at boot: that of the root, if there is one, and those below
// it, outer directories first.
func parseFstab(text string) (root mountLine, list []mountLine) {
	for line := range strings.Lines(text) {
		f := fsys.MountFields(line)
		if len(f) < 3 || strings.HasPrefix(f[0], "#") {
			continue
		}
		m := mountLine{fsys.UnescapeMount(f[0]), path.Clean(fsys.UnescapeMount(f[1])), f[2], nil}
		if len(f) > 3 {
			m.options = strings.Split(f[3], ",")
		}
		if m.target == "/" {
			root = m
			continue
		}
		if !path.IsAbs(m.target) || !slices.Contains(diskTypes, m.kind) ||
			m.has("noauto") || m.has("bind") || m.has("_netdev") {
			continue
		}
		list = append(list, m)
	}
	slices.SortStableFunc(list, func(a, b mountLine) int { return strings.Count(a.target, "/") - strings.Count(b.target, "/") })
	return root, list
}

func (m mountLine) has(option string) bool { return slices.Contains(m.options, option) }

// subvolume returns the option that asks for a subvolume of btrfs; "": none does.
func (m mountLine) subvolume() string {
	for _, o := range m.options {
		if strings.HasPrefix(o, "subvol=") || strings.HasPrefix(o, "subvolid=") {
			return o
		}
	}
	return ""
}

// deviceName finds the disk and the number of a partition in the name of a device. A disk itself has no number.
var deviceName = lazyregexp.New(`^/dev/(?:((?:sd|vd|hd|xvd)[a-z]+)(\d*)|(nvme\d+n\d+|mmcblk\d+)(?:p(\d+))?)$`)

// device returns the disk and the partition's number, "" for a disk itself, of the name of a device; ok reports whether it is
// one.
func device(source string) (disk, number string, ok bool) {
	m := deviceName().FindStringSubmatch(strings.ReplaceAll(source, `"`, ""))
	if m == nil {
		return "", "", false
	}
	return m[1] + m[3], m[2] + m[4], true
}

// firstDisks are the names that a guest's only disk has.
var firstDisks = []string{"sda", "vda", "hda", "xvda", "nvme0n1", "mmcblk0"}

// disksOf returns the names of the disk that has the root: as the root's own line has it, else those of a first disk.
func disksOf(root mountLine) []string {
	if disk, _, ok := device(root.source); ok {
		return []string{disk}
	}
	return firstDisks
}

// is reports whether a line of an fstab means the volume. Names of devices count where they are of one of the disks.
func (v volume) is(source string, disks []string) bool {
	source = strings.ReplaceAll(source, `"`, "")
	for prefix, own := range map[string]string{
		"UUID=": v.uuid, "LABEL=": v.label, "PARTUUID=": v.span.uuid,
		"/dev/disk/by-uuid/": v.uuid, "/dev/disk/by-label/": v.label, "/dev/disk/by-partuuid/": v.span.uuid,
	} {
		if value, ok := strings.CutPrefix(source, prefix); ok && own != "" && strings.EqualFold(value, own) {
			return true
		}
	}
	if v.logical != "" && (source == "/dev/"+v.logical || source == "/dev/mapper/"+mapperName(v.logical)) {
		return true
	}
	disk, number, ok := device(source)
	return ok && v.number > 0 && number == itoa(v.number) && slices.Contains(disks, disk)
}
