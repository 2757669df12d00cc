package packages

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// errNotDirectory is what a path through a file ends with.
const errNotDirectory = syscall.ENOTDIR

// Where dpkg keeps what is installed.
const (
	dpkgDir     = "/var/lib/dpkg"
	dpkgStatus  = dpkgDir + "/status"
	dpkgUpdates = dpkgDir + "/updates" // what a dpkg that runs, or was killed, has not brought into status yet
	dpkgInfo    = dpkgDir + "/info"
)

// stanza is what is read of one paragraph of status.
type stanza struct {
	name, version, arch, status, maintainer, summary, size, provides string

	lines int  // that belong to it
	bad   bool // one of them is none of a field
}

// key identifies a package: one name may be installed for several architectures.
func (s *stanza) key() string { return s.name + ":" + s.arch }

// state returns the third word of Status. Where triggers are pending the package works.
func (s *stanza) state() string {
	words := strings.Fields(s.status)
	if len(words) != 3 {
		return ""
	}
	if words[2] == "triggers-awaited" || words[2] == "triggers-pending" {
		return StateInstalled
	}
	return words[2]
}

// valid reports whether it makes a package. What is not installed has no version.
func (s *stanza) valid() bool {
	state := s.state()
	return !s.bad && s.name != "" && state != "" && (s.version != "" || state != StateInstalled)
}

func (r *Reader) readDpkg(ctx context.Context) (*result, error) {
	var list []stanza
	out := &result{}
	at := map[string]int{}
	damaged := 0
	take := func(s *stanza) error {
		if !s.valid() {
			damaged++
			return nil
		}
		if i, ok := at[s.key()]; ok {
			list[i] = *s
			return nil
		}
		if len(list) >= maxPackages {
			return fault.Wrapf(fault.ErrTooLarge, "more than %d packages", maxPackages)
		}
		at[s.key()] = len(list)
		list = append(list, *s)
		return nil
	}
	if err := r.stanzas(ctx, dpkgStatus, take); err != nil {
		return nil, fault.On(dpkgStatus, err)
	}
	if err := r.updates(ctx, out, take); err != nil {
		return nil, err
	}
	if damaged > 0 && len(list) == 0 {
		return nil, fault.On(dpkgStatus, fault.Wrapf(fault.ErrCorrupt, "nothing in it is an entry of a package"))
	}
	if damaged > 0 {
		out.warn(dpkgStatus, fault.Wrapf(fault.ErrCorrupt, "%d entries make no sense and are left out", damaged))
	}
	times := r.times(dpkgInfo, ".list")
	for i := range list {
		if err := out.add(list[i].toPackage(times)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// updates reads what is newer than status. Such files have names of digits, and a later one counts more.
func (r *Reader) updates(ctx context.Context, out *result, take func(*stanza) error) error {
	names, err := r.names(dpkgUpdates)
	if err != nil {
		out.warn(dpkgUpdates, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.Trim(name, "0123456789") != "" {
			continue
		}
		path := dpkgUpdates + "/" + name
		if err := r.stanzas(ctx, path, take); err != nil && !errors.Is(err, fs.ErrNotExist) { // dpkg has just used it up
			return fault.On(path, err)
		}
	}
	return nil
}

// stanzas calls take with each paragraph of a file.
func (r *Reader) stanzas(ctx context.Context, path string, take func(*stanza) error) error {
	file, err := r.open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return parseStanzas(ctx, file, take)
}

func parseStanzas(ctx context.Context, from io.Reader, take func(*stanza) error) error {
	var s stanza
	end := func() error {
		if s.lines == 0 {
			return nil
		}
		done := s
		s = stanza{}
		return take(&done)
	}
	err := eachLine(ctx, from, func(line []byte) error {
		if len(bytes.TrimSpace(line)) == 0 {
			return end()
		}
		s.line(line)
		return nil
	})
	if err != nil {
		return err
	}
	return end()
}

// line takes one line of a paragraph. Lines that begin with a blank go on with the field before.
func (s *stanza) line(line []byte) {
	s.lines++
	if line[0] == ' ' || line[0] == '\t' {
		return
	}
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || bytes.ContainsAny(name, " \t\x00") {
		s.bad = true
		return
	}
	var field *string
	switch string(name) {
	case "Package":
		field = &s.name
	case "Version":
		field = &s.version
	case "Architecture":
		field = &s.arch
	case "Status":
		field = &s.status
	case "Maintainer":
		field = &s.maintainer
	case "Description":
		field = &s.summary
	case "Installed-Size":
		field = &s.size
	case "Provides":
		field = &s.provides
	default:
		return
	}
	*field = strings.TrimSpace(string(value))
}

// toPackage makes the package of a stanza. times are those of the lists of files, which dpkg writes when it unpacks.
func (s *stanza) toPackage(times map[string]time.Time) Package {
	p := Package{
		Type: Deb, Name: s.name, Version: s.version, Arch: s.arch, State: s.state(), Publisher: s.maintainer, Summary: s.summary,
	}
	if kib, err := strconv.ParseUint(s.size, 10, 54); err == nil {
		p.Size = kib << 10
	}
	if at, ok := times[s.key()]; ok {
		p.Installed = at
	} else {
		p.Installed = times[s.name]
	}
	for name := range strings.SplitSeq(s.provides, ",") {
		name, _, _ = strings.Cut(strings.TrimSpace(name), " ")
		if name != "" {
			p.Provides = append(p.Provides, name)
		}
	}
	return p
}
