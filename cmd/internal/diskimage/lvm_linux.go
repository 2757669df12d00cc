package diskimage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"strings"
)

// Volumes of LVM are found by its metadata, as lib/format_text of its sources writes it, and not by its tools: those would
// take the volume groups of an image for some of this machine, which may have others of the same name. A volume that lies in
// the image in one piece, as most do, needs no device mapper either: it is a part of the disk like a partition.
//
//	label ─► header of the physical volume: its identifier, where its metadata areas are
//	           └─► header of an area ─► the text: volume group, physical volumes, logical volumes with their segments

const (
	labelSectors = 4        // the label is in one of the first of them
	maxMetadata  = 16 << 20 // how long the text may be, in bytes
	areaHeader   = 512      // bytes of the header of a metadata area; the text goes round after it
	areaMagic    = " LVM2 x[5A%r0N*>"
)

var le = binary.LittleEndian

// lvmSum is the checksum of LVM: a CRC-32 that begins with another value, and is not inverted.
func lvmSum(b []byte) uint32 { return ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b) }

// physical is a physical volume of LVM.
type physical struct {
	volume
	id   string // without dashes
	text string // the metadata
}

// readPhysical reads the label and the metadata of a physical volume.
func readPhysical(disk io.ReaderAt, v volume) (p physical, err error) {
	p.volume = v
	r := io.NewSectionReader(disk, v.start, v.len)
	head := make([]byte, labelSectors*sector)
	if _, err := r.ReadAt(head, 0); err != nil {
		return p, err
	}
	label := head[labelAt(head):]
	at := int(le.Uint32(label[20:]))
	if string(label[24:32]) != "LVM2 001" || at < 32 || at > sector-40 {
		return p, errors.New("its label is of another kind")
	}
	if le.Uint32(label[16:]) != lvmSum(label[20:sector]) {
		return p, errors.New("its label is damaged")
	}
	header := label[at:sector]
	p.id = string(header[:32])
	areas := header[40:]
	for ; len(areas) >= 16 && le.Uint64(areas) != 0; areas = areas[16:] { // the data areas, which the text has as well
	}
	if len(areas) < 16 {
		return p, errors.New("its header is damaged")
	}
	for areas = areas[16:]; len(areas) >= 16 && le.Uint64(areas) != 0; areas = areas[16:] {
		text, e := readArea(r, int64(le.Uint64(areas)), int64(le.Uint64(areas[8:])))
		if e == nil && text != "" {
			p.text = text
			return p, nil
		}
		err = errors.Join(err, e)
	}
	return p, err // one without an area of its own is described by the others
}

// labelAt returns where in the head of a disk the label is; -1: there is none.
func labelAt(head []byte) int {
	for at := 0; at+sector <= min(len(head), labelSectors*sector); at += sector {
		if string(head[at:at+8]) == "LABELONE" {
			return at
		}
	}
	return -1
}

// readArea reads the text of a metadata area; "": it has none.
func readArea(r *io.SectionReader, start, size int64) (string, error) {
	damaged := errors.New("its metadata area is damaged")
	head := make([]byte, areaHeader)
	if start < 0 || size <= areaHeader || start > r.Size()-size {
		return "", damaged
	}
	if _, err := r.ReadAt(head, start); err != nil {
		return "", err
	}
	if string(head[4:20]) != areaMagic || le.Uint32(head) != lvmSum(head[4:]) {
		return "", damaged
	}
	offset, length := int64(le.Uint64(head[40:])), int64(le.Uint64(head[48:]))
	if offset == 0 || le.Uint32(head[60:])&1 != 0 { // nothing yet, or an area that is not to be used
		return "", nil
	}
	if offset < areaHeader || offset >= size || length <= 0 || length > min(maxMetadata, size-areaHeader) {
		return "", damaged
	}
	text := make([]byte, length)
	first := min(length, size-offset)
	if _, err := r.ReadAt(text[:first], start+offset); err != nil {
		return "", err
	}
	if _, err := r.ReadAt(text[first:], start+areaHeader); err != nil && first < length {
		return "", err
	}
	if le.Uint32(head[56:]) != lvmSum(text) {
		return "", damaged
	}
	return strings.TrimRight(string(text), "\x00"), nil
}

// logicalVolumes replaces the physical volumes of LVM in a list by the logical ones that lie on them. A physical volume
// stays, and says why, where it cannot be read.
func logicalVolumes(disk io.ReaderAt, list []volume) (out []volume) {
	var all []physical
	groups := map[string]section{} // by identifier, the newest metadata of each
	names := map[string]string{}
	for _, v := range list {
		if v.foreign != foreignLVM {
			out = append(out, v)
			continue
		}
		p, err := readPhysical(disk, v)
		if err == nil && p.text != "" {
			var name string
			var group section
			if name, group, err = parseGroup(p.text); err == nil {
				id := group.text("id")
				if old := groups[id]; old == nil || old.number("seqno") < group.number("seqno") {
					groups[id], names[id] = group, name
				}
			}
		}
		if err != nil {
			v.foreign += ", and " + err.Error()
			out = append(out, v)
			continue
		}
		all = append(all, p)
	}
	seen := map[string]int{}
	for _, p := range all {
		seen[p.id]++
	}
	all = slices.DeleteFunc(all, func(p physical) bool { // a copy: nothing says which one is meant
		if seen[p.id] > 1 {
			p.foreign += ", and another one has the same identifier"
			out = append(out, p.volume)
		}
		return seen[p.id] > 1
	})
	taken := map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(groups)) {
		g := group{section: groups[id], name: names[id], all: all}
		for _, p := range g.physicals() {
			taken[p.id] = true
		}
		out = append(out, g.volumes()...)
	}
	for _, p := range all {
		if !taken[p.id] {
			p.foreign += ", and of no volume group"
			out = append(out, p.volume)
		}
	}
	return out
}

// group is a volume group.
type group struct {
	section
	name string
	all  []physical // of the image
}

// physicals returns those of the group that the image has, by their names in the text.
func (g group) physicals() map[string]physical {
	found := map[string]physical{}
	list := g.sub("physical_volumes")
	for name := range list {
		id := strings.ReplaceAll(list.sub(name).text("id"), "-", "")
		for _, p := range g.all {
			if p.id == id {
				found[name] = p
			}
		}
	}
	return found
}

// volumes returns the logical volumes of a group that are seen from outside.
func (g group) volumes() (out []volume) {
	list := g.sub("logical_volumes")
	origins := map[string]bool{}
	for name := range list {
		for segment := range list.sub(name) {
			if origin := list.sub(name).sub(segment).text("origin"); origin != "" {
				origins[origin] = true
			}
		}
	}
	present := g.physicals()
	for _, name := range slices.Sorted(maps.Keys(list)) {
		lv := list.sub(name)
		if !lv.has("status", "VISIBLE") {
			continue
		}
		v := volume{logical: g.name + "/" + name}
		start, length, err := g.place(lv, present)
		switch {
		case g.has("status", "EXPORTED"):
			err = errors.New("its group is exported")
		case origins[name]:
			err = errors.New("there is a snapshot of it, which would have to be kept as it is")
		case err == nil && !lv.has("status", "WRITE"):
			err = errors.New("it may only be read")
		}
		if err != nil {
			v.foreign = fmt.Sprintf("a volume of LVM (%v)", err)
		}
		v.start, v.len = start, length
		out = append(out, v)
	}
	return out
}

// place returns where in the disk a logical volume lies, which must be in one piece.
func (g group) place(lv section, present map[string]physical) (start, length int64, err error) {
	extent := g.number("extent_size") * sector
	count := lv.number("segment_count")
	if extent <= 0 || extent > 1<<40 || count < 1 || count > 1<<16 {
		return 0, 0, errors.New("its metadata is damaged")
	}
	for n := range count {
		s := lv.sub(fmt.Sprintf("segment%d", n+1))
		if kind := s.text("type"); kind != "striped" && kind != "linear" {
			return 0, 0, fmt.Errorf("of the type %.20q", kind)
		}
		stripes := s.list("stripes")
		if s.number("stripe_count") != 1 || len(stripes) != 2 {
			return 0, 0, errors.New("in stripes")
		}
		name, _ := stripes[0].(string)
		first, isNumber := stripes[1].(int64)
		p, here := present[name]
		if !here {
			return 0, 0, errors.New("a part of it is on a disk that is not the image")
		}
		at := g.sub("physical_volumes").sub(name).number("pe_start")
		size := s.number("extent_count")
		if !isNumber || first < 0 || size <= 0 || at < 0 || first > p.len/extent || size > p.len/extent || at > p.len/sector ||
			at*sector+(first+size)*extent > p.len {
			return 0, 0, errors.New("its metadata is damaged")
		}
		from := p.start + at*sector + first*extent
		switch {
		case n == 0:
			start = from
		case from != start+length:
			return 0, 0, errors.New("in several pieces: make it one by pvmove, or activate it by lvm, mount it and give --root")
		}
		length += size * extent
	}
	return start, length, nil
}

// mapperName is how the device mapper names a logical volume, below /dev/mapper.
func mapperName(logical string) string {
	group, name, _ := strings.Cut(logical, "/")
	return strings.ReplaceAll(group, "-", "--") + "-" + strings.ReplaceAll(name, "-", "--")
}
