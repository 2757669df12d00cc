package packages

import (
	"bytes"
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// pacmanLocal is where pacman keeps what is installed: a directory for each package.
const pacmanLocal = "/var/lib/pacman/local"

func (r *Reader) readPacman(ctx context.Context) (*result, error) {
	names, err := r.names(pacmanLocal)
	if err != nil {
		return nil, fault.On(pacmanLocal, err)
	}
	out := &result{}
	for _, name := range names {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if name == "ALPM_DB_VERSION" {
			continue
		}
		path := pacmanLocal + "/" + name + "/desc"
		content, err := r.Files.ReadFile(path, maxFile)
		if err != nil {
			out.warn(path, err)
			continue
		}
		p := parseDesc(content)
		if p.Name == "" || p.Version == "" {
			out.warn(path, fault.Wrapf(fault.ErrCorrupt, "it does not describe a package"))
			continue
		}
		if err := out.add(p); err != nil {
			return nil, fault.On(pacmanLocal, err)
		}
	}
	return out, nil
}

// parseDesc reads a file of blocks: %FIELD%, and its values in lines up to an empty one.
func parseDesc(content []byte) Package {
	p := Package{Type: Pacman}
	field := ""
	for raw := range bytes.Lines(content) {
		line := strings.TrimSpace(string(raw))
		if len(line) > 2 && line[0] == '%' && line[len(line)-1] == '%' {
			field = line[1 : len(line)-1]
			continue
		}
		if line == "" {
			field = ""
			continue
		}
		switch field {
		case "NAME":
			p.Name = line
		case "VERSION":
			p.Version = line
		case "ARCH":
			p.Arch = line
		case "DESC":
			p.Summary = line
		case "PACKAGER":
			p.Publisher = line
		case "SIZE":
			p.Size, _ = strconv.ParseUint(line, 10, 64)
		case "INSTALLDATE":
			if at, err := strconv.ParseInt(line, 10, 64); err == nil && at > 0 {
				p.Installed = time.Unix(at, 0)
			}
		case "PROVIDES":
			name, _, _ := strings.Cut(line, "=")
			p.Provides = append(p.Provides, name)
		}
	}
	return p
}
