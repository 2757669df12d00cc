// Package packages reads which packages are installed from the databases of the package managers.
//
//	/var/lib/dpkg/status ──────────┐
//	/lib/apk/db/installed ─────────┤
//	/var/lib/pacman/local ─────────┼──► Reader.Read ──► []Package ──► inventory, package
//	rpm -qa ───────────────────────┤
//	/var/lib/flatpak, /snap ───────┤
//	the registry of Windows ───────┘
//
// All but rpm's and that of Windows are read as files, so that a tree which is not booted is read as well. The database of rpm
// has three formats, one of which is SQLite's: a reader of that in Go would add a third to the agent's size, so rpm itself is
// asked.
//
// Not here: changing what is installed, and what could be.
package packages

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// The types of packages. They are those of the contract.
const (
	Deb     = "deb"
	RPM     = "rpm"
	APK     = "apk"
	Pacman  = "pacman"
	Flatpak = "flatpak"
	Snap    = "snap"
)

// StateInstalled is the state of what is installed and complete.
const StateInstalled = "installed"

const (
	maxField    = 1024     // bytes of a text of a package
	maxFile     = 16 << 20 // bytes of a file that is read whole
	maxPackages = 1 << 17  // in all; a database with more of them is taken for damaged
)

// Package is one package. What its database does not have is empty.
type Package struct {
	// Type is one of the types above.
	Type, Name, Version, Arch string
	// State is StateInstalled, or, of dpkg, how far the package is from that: config-files, half-configured…
	State string
	// Publisher is who made it, and Summary one line about it.
	Publisher, Summary string
	// Size is what it takes when installed, in bytes.
	Size uint64
	// Installed is when this version was installed.
	Installed time.Time
	// Provides are other names that it goes by; of rpm they are not read.
	Provides []string
}

// Reader reads the databases of one system.
type Reader struct {
	// Files is its file system. Required.
	Files *fsys.Root
	// Live says that it is the running system.
	Live bool
	// Query runs a program of the system and returns what it prints. Nil: none can be run, and rpm's database is not read.
	Query func(ctx context.Context, argv ...string) ([]byte, error)
}

// database is how one type of packages is found and read.
type database struct {
	kind string
	// at are the places of which one is there where the system has such packages; there says it where that are no files.
	at    []string
	there func(r *Reader) bool
	read  func(r *Reader, ctx context.Context) (*result, error)
}

func databases() []database {
	return append([]database{
		{kind: Deb, at: []string{dpkgStatus}, read: (*Reader).readDpkg},
		{kind: RPM, at: rpmDatabases(), read: (*Reader).readRPM},
		{kind: APK, at: apkDatabases(), read: (*Reader).readAPK},
		{kind: Pacman, at: []string{pacmanLocal}, read: (*Reader).readPacman},
		{kind: Flatpak, at: []string{flatpakDir + "/app", flatpakDir + "/runtime"}, read: (*Reader).readFlatpak},
		{kind: Snap, at: []string{snapsDir}, read: (*Reader).readSnap},
	}, ownDatabases()...)
}

// Types returns the types of packages that there can be.
func Types() (types []string) {
	for _, d := range databases() {
		types = append(types, d.kind)
	}
	return types
}

// Known returns the types of packages that the system has a database of, those of package managers before flatpak and snap.
func (r *Reader) Known() (types []string) {
	for _, d := range databases() {
		if r.has(d) {
			types = append(types, d.kind)
		}
	}
	return types
}

func (r *Reader) has(d database) bool {
	if d.there != nil {
		return d.there(r)
	}
	for _, path := range d.at {
		if r.exists(path) {
			return true
		}
	}
	return false
}

// Read returns the packages of one type, in no order, whatever their state. The warnings name what could not be read: then
// packages are missing. The error is fault.ErrCorrupt where nothing in a database makes sense, fs.ErrNotExist where there is
// none, and errors.ErrUnsupported where it cannot be read here.
func (r *Reader) Read(ctx context.Context, kind string) (list []Package, warnings []string, err error) {
	for _, d := range databases() {
		if d.kind != kind {
			continue
		}
		got, err := d.read(r, ctx)
		if err != nil {
			return nil, nil, err
		}
		return got.list, got.warnings, nil
	}
	return nil, nil, fault.Invalid("%q is no type of packages: there are %s", kind, strings.Join(Types(), ", "))
}

// result is what was read of one database.
type result struct {
	list     []Package
	warnings []string
}

// add adds a package. Text of a database may be anything: what is not UTF-8 is escaped, and what is long is cut.
func (r *result) add(p Package) error {
	if len(r.list) >= maxPackages {
		return fault.Wrapf(fault.ErrTooLarge, "more than %d packages", maxPackages)
	}
	for _, field := range []*string{&p.Name, &p.Version, &p.Arch, &p.State, &p.Publisher, &p.Summary} {
		*field, _ = text.ToValidUTF8Max(strings.TrimSpace(*field), maxField)
	}
	if p.State == "" {
		p.State = StateInstalled
	}
	r.list = append(r.list, p)
	return nil
}

func (r *result) warn(path string, err error) {
	r.warnings = append(r.warnings, fault.On(path, err).Error())
}

// exists reports whether something is at a path, links followed.
func (r *Reader) exists(path string) bool {
	at, err := r.Files.Follow(path)
	if err != nil {
		return false
	}
	defer at.Close()
	_, err = at.Stat()
	return err == nil
}

// open opens a regular file.
func (r *Reader) open(path string) (*os.File, error) {
	at, err := r.Files.Follow(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	return at.Open()
}

// dir opens a directory.
func (r *Reader) dir(path string) (*fsys.Dir, error) {
	at, err := r.Files.Follow(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	return at.OpenDir()
}

// maxNames bounds the names in a directory of a package manager that are read.
const maxNames = 100_000

// names returns the names in a directory, escaped; none where it is not there.
func (r *Reader) names(path string) ([]string, error) {
	dir, err := r.dir(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotDirectory) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Names(maxNames)
	for i, name := range names {
		names[i] = text.EscapePath(name)
	}
	return names, err
}

// times returns when the files of a directory that end in suffix were written, by their names without it.
func (r *Reader) times(path, suffix string) map[string]time.Time {
	dir, err := r.dir(path)
	if err != nil {
		return nil
	}
	defer dir.Close()
	times := map[string]time.Time{}
	_ = dir.Each(func(name string) error { // what could not be read has no time
		if base, ok := strings.CutSuffix(name, suffix); ok {
			if meta, err := dir.Stat(name); err == nil {
				times[base] = meta.Mtime.Time()
			}
		}
		return nil
	})
	return times
}

// eachLine calls f with each line of a stream, without its end and with at most 64 KiB of it, until ctx ends.
func eachLine(ctx context.Context, from io.Reader, f func(line []byte) error) error {
	buf := bufio.NewReaderSize(from, 64<<10)
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		line, err := buf.ReadSlice('\n')
		if len(line) > 0 {
			if end := len(line) - 1; line[end] == '\n' {
				line = line[:end]
			}
			if err := f(line); err != nil {
				return err
			}
		}
		for errors.Is(err, bufio.ErrBufferFull) { // the rest of a long line
			_, err = buf.ReadSlice('\n')
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
