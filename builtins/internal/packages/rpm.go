package packages

import (
	"bytes"
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// rpmDatabases are the files of rpm's database: of SQLite, of Berkeley DB and of its own format, in both places.
func rpmDatabases() (paths []string) {
	for _, dir := range []string{"/var/lib/rpm/", "/usr/lib/sysimage/rpm/"} {
		for _, name := range []string{"rpmdb.sqlite", "Packages", "Packages.db"} {
			paths = append(paths, dir+name)
		}
	}
	return paths
}

// rpmFields are what rpm is asked of each package; a tabulator is between them.
func rpmFields() []string {
	return []string{
		"%{NAME}", "%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}", "%{ARCH}", "%{LONGSIZE}", "%{INSTALLTIME}", "%{VENDOR}",
		"%{SUMMARY}",
	}
}

// readRPM asks rpm. Keys, which it keeps among the packages, are left out.
func (r *Reader) readRPM(ctx context.Context) (*result, error) {
	if r.Query == nil {
		return nil, fault.Unsupported("the database of rpm is read by rpm, and no commands are run here")
	}
	printed, err := r.Query(ctx, "rpm", "-qa", "--queryformat", strings.Join(rpmFields(), `\t`)+`\n`)
	if err != nil {
		return nil, fault.On("rpm", err)
	}
	out := &result{}
	damaged := 0
	err = eachLine(ctx, bytes.NewReader(printed), func(line []byte) error {
		fields := strings.SplitN(string(line), "\t", len(rpmFields()))
		if len(fields) < len(rpmFields()) || fields[0] == "" {
			damaged++
			return nil
		}
		if fields[0] == "gpg-pubkey" {
			return nil
		}
		for i, field := range fields {
			if field == "(none)" {
				fields[i] = ""
			}
		}
		p := Package{
			Type: RPM, Name: fields[0], Version: fields[1], Arch: fields[2], Publisher: fields[5], Summary: fields[6],
		}
		p.Size, _ = strconv.ParseUint(fields[3], 10, 64)
		if at, err := strconv.ParseInt(fields[4], 10, 64); err == nil && at > 0 {
			p.Installed = time.Unix(at, 0)
		}
		return out.add(p)
	})
	if err != nil {
		return nil, fault.On("rpm", err)
	}
	if damaged > 0 {
		out.warn("rpm", fault.Wrapf(fault.ErrCorrupt, "%d lines that it printed make no sense", damaged))
	}
	return out, nil
}
