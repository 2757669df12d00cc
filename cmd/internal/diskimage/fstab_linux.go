package diskimage

import (
	"path"
	"regexp"
	"slices"
	"strings"
)

// mountLine is a line of an fstab.
type mountLine struct {
	source, target, kind string
	options              []string
}

// diskTypes are the file systems that an image can have and that are mounted.
var diskTypes = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "auto"}

// unescape replaces what fstab(5) writes for blanks.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`)

// parseFstab returns the lines that mount a file system of a disk below the root at boot, those of outer directories first.
func parseFstab(text string) (list []mountLine) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 3 || strings.HasPrefix(f[0], "#") {
			continue
		}
		m := mountLine{unescape.Replace(f[0]), path.Clean(unescape.Replace(f[1])), f[2], nil}
		if len(f) > 3 {
			m.options = strings.Split(f[3], ",")
		}
		if !path.IsAbs(m.target) || m.target == "/" || !slices.Contains(diskTypes, m.kind) ||
			m.has("noauto") || m.has("bind") || m.has("_netdev") {
			continue
		}
		list = append(list, m)
	}
	slices.SortStableFunc(list, func(a, b mountLine) int { return strings.Count(a.target, "/") - strings.Count(b.target, "/") })
	return list
}

func (m mountLine) has(option string) bool { return slices.Contains(m.options, option) }

// numbered finds the number of a partition in the name of its device.
var numbered = regexp.MustCompile(`^/dev/(?:(?:sd|vd|hd|xvd)[a-z]+|(?:nvme\d+n\d+|mmcblk\d+)p)(\d+)$`)

// is reports whether a line of an fstab means the volume.
func (v volume) is(source string) bool {
	source = strings.ReplaceAll(source, `"`, "")
	for prefix, own := range map[string]string{
		"UUID=": v.uuid, "LABEL=": v.label, "PARTUUID=": v.span.uuid,
		"/dev/disk/by-uuid/": v.uuid, "/dev/disk/by-label/": v.label, "/dev/disk/by-partuuid/": v.span.uuid,
	} {
		if value, ok := strings.CutPrefix(source, prefix); ok && own != "" && strings.EqualFold(value, own) {
			return true
		}
	}
	if m := numbered.FindStringSubmatch(source); m != nil {
		return v.number > 0 && m[1] == itoa(v.number)
	}
	return false
}
