package packages

import (
	"context"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// apkDatabases are where apk keeps what is installed; the second since /lib may be a link to /usr/lib.
func apkDatabases() []string { return []string{"/lib/apk/db/installed", "/usr/lib/apk/db/installed"} }

// readAPK reads apk's database: paragraphs of lines X:value. It has no time of an installation.
func (r *Reader) readAPK(ctx context.Context) (*result, error) {
	path := apkDatabases()[0]
	if !r.exists(path) {
		path = apkDatabases()[1]
	}
	file, err := r.open(path)
	if err != nil {
		return nil, fault.On(path, err)
	}
	defer file.Close()
	out := &result{}
	var p Package
	lines, damaged := 0, 0
	end := func() error {
		done, n := p, lines
		p, lines = Package{}, 0
		switch {
		case n == 0:
			return nil
		case done.Name == "" || done.Version == "":
			damaged++
			return nil
		}
		done.Type = APK
		return out.add(done)
	}
	err = eachLine(ctx, file, func(line []byte) error {
		if len(line) == 0 {
			return end()
		}
		lines++
		if len(line) < 2 || line[1] != ':' {
			return nil
		}
		value := string(line[2:])
		switch line[0] {
		case 'P':
			p.Name = value
		case 'V':
			p.Version = value
		case 'A':
			p.Arch = value
		case 'T':
			p.Summary = value
		case 'm':
			p.Publisher = value
		case 'I':
			p.Size, _ = strconv.ParseUint(value, 10, 64)
		case 'p':
			for _, name := range strings.Fields(value) {
				name, _, _ = strings.Cut(name, "=")
				p.Provides = append(p.Provides, name)
			}
		}
		return nil
	})
	if err == nil {
		err = end()
	}
	if err == nil && damaged > 0 && len(out.list) == 0 {
		err = fault.Wrapf(fault.ErrCorrupt, "nothing in it is an entry of a package")
	}
	if err != nil {
		return nil, fault.On(path, err)
	}
	if damaged > 0 {
		out.warn(path, fault.Wrapf(fault.ErrCorrupt, "%d entries make no sense and are left out", damaged))
	}
	return out, nil
}
