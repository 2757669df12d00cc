package packages

import (
	"context"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Where flatpak keeps what is installed for all users, and snapd its images, of which each is mounted below /snap.
const (
	flatpakDir = "/var/lib/flatpak"
	snapsDir   = "/var/lib/snapd/snaps"
	snapMounts = "/snap"
)

// readFlatpak reads apps and runtimes that are installed for all users: {app,runtime}/ID/ARCH/BRANCH/active.
func (r *Reader) readFlatpak(ctx context.Context) (*result, error) {
	out := &result{}
	for _, kind := range []string{"app", "runtime"} {
		for _, id := range r.below(out, flatpakDir+"/"+kind) {
			for _, arch := range r.below(out, flatpakDir+"/"+kind+"/"+id) {
				for _, branch := range r.below(out, flatpakDir+"/"+kind+"/"+id+"/"+arch) {
					if err := context.Cause(ctx); err != nil {
						return nil, err
					}
					dir := flatpakDir + "/" + kind + "/" + id + "/" + arch + "/" + branch + "/active"
					if arch == "current" || !r.exists(dir) { // current is a link to the branch that is started
						continue
					}
					p := r.flatpak(dir, id)
					p.Arch = arch
					if p.Version == "" {
						p.Version = branch
					}
					if err := out.add(p); err != nil {
						return nil, fault.On(flatpakDir, err)
					}
				}
			}
		}
	}
	return out, nil
}

// below returns the names in a directory, and warns where it cannot be read.
func (r *Reader) below(out *result, path string) []string {
	names, err := r.names(path)
	if err != nil {
		out.warn(path, err)
	}
	return names
}

// metainfo is what is read of an application's description for software centers.
type metainfo struct {
	Summary   []string `xml:"summary"`
	Developer string   `xml:"developer_name"`
	Names     []string `xml:"developer>name"`
	Releases  []struct {
		Version string `xml:"version,attr"`
	} `xml:"releases>release"`
}

// flatpak reads what one deployed app, or runtime, says of itself.
func (r *Reader) flatpak(dir, id string) Package {
	p := Package{Type: Flatpak, Name: id, Installed: r.modified(dir)}
	if deploy, err := r.Files.ReadFile(dir+"/deploy", maxFile); err == nil {
		p.Size = deployedSize(deploy)
	}
	for _, place := range [][2]string{{"metainfo/", ".metainfo.xml"}, {"metainfo/", ".appdata.xml"}, {"appdata/", ".appdata.xml"}} {
		content, err := r.Files.ReadFile(dir+"/files/share/"+place[0]+id+place[1], maxFile)
		var info metainfo
		if err != nil || xml.Unmarshal(content, &info) != nil {
			continue
		}
		if len(info.Releases) > 0 {
			p.Version = info.Releases[0].Version
		}
		if len(info.Summary) > 0 {
			p.Summary = info.Summary[0]
		}
		if p.Publisher = info.Developer; p.Publisher == "" && len(info.Names) > 0 {
			p.Publisher = info.Names[0]
		}
		break
	}
	return p
}

// deployedSize returns the installed size of a deploy file, which is a serialized GVariant of type (ssasta{sv}): origin,
// commit, subpaths, size in bytes in network order, more. The ends of the first three stand at the end of the file, that of the
// third first; the size is aligned to 8 bytes. 0: it is no such file.
func deployedSize(deploy []byte) uint64 {
	width := 8
	switch n := len(deploy); {
	case n < 1<<8:
		width = 1
	case n < 1<<16:
		width = 2
	case n < 1<<32:
		width = 4
	}
	at := len(deploy) - 3*width
	if at < 8 {
		return 0
	}
	var raw [8]byte
	copy(raw[:], deploy[at:at+width])
	end := binary.LittleEndian.Uint64(raw[:])
	begin := (end + 7) &^ 7
	if begin < end || begin > uint64(at)-8 {
		return 0
	}
	return binary.BigEndian.Uint64(deploy[begin:])
}

// modified returns when what is at a path was made or put there; a link is not followed.
func (r *Reader) modified(path string) time.Time {
	at, err := r.Files.At(path)
	if err != nil {
		return time.Time{}
	}
	defer at.Close()
	meta, err := at.Stat()
	if err != nil {
		return time.Time{}
	}
	return meta.Mtime.Time()
}

// readSnap reads the snaps of which a revision is current. The description of a snap is in its image: its version is known
// where that is mounted.
func (r *Reader) readSnap(ctx context.Context) (*result, error) {
	names, err := r.names(snapMounts)
	if err != nil {
		return nil, fault.On(snapMounts, err)
	}
	out := &result{}
	for _, name := range names {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		current := snapMounts + "/" + name + "/current"
		revision, ok := r.link(current)
		if !ok || name == "bin" {
			continue
		}
		p := Package{Type: Snap, Name: name, Installed: r.modified(current)}
		image := snapsDir + "/" + name + "_" + fsys.Base(revision) + ".snap"
		if at, err := r.Files.Follow(image); err == nil {
			if meta, err := at.Stat(); err == nil {
				p.Size = uint64(meta.Size)
			}
			at.Close()
		}
		description, err := r.Files.ReadFile(current+"/meta/snap.yaml", maxFile)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			out.warn(current+"/meta/snap.yaml", err)
		}
		p.Version, p.Summary = yamlValue(description, "version"), yamlValue(description, "summary")
		if arch := yamlValue(description, "architectures"); arch != "" {
			p.Arch = strings.Trim(arch, "[]")
		}
		if err := out.add(p); err != nil {
			return nil, fault.On(snapMounts, err)
		}
	}
	return out, nil
}

// link returns where a link points; false where there is none.
func (r *Reader) link(path string) (target string, ok bool) {
	at, err := r.Files.At(path)
	if err != nil {
		return "", false
	}
	defer at.Close()
	meta, err := at.Stat()
	return meta.Target, err == nil && meta.Kind == fsys.Symlink
}

// yamlValue returns the value of a key at the top of a document, where it stands in the same line as the key: all that
// snap.yaml is read for.
func yamlValue(document []byte, key string) string {
	for line := range strings.Lines(string(document)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			value = strings.TrimSpace(value)
			if n := len(value); n >= 2 && value[0] == value[n-1] && (value[0] == '\'' || value[0] == '"') {
				value = value[1 : n-1]
			}
			return value
		}
	}
	return ""
}
