package netplan

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// generators are where distributions have netplan's generator. Its front end, netplan(8), is a Python program that takes a
// second to begin with.
var generators = []string{"/usr/libexec/netplan/generate", "/usr/lib/netplan/generate", "/lib/netplan/generate"}

const (
	generatorTime = 30 * time.Second // a moment on real hardware
	maxGenerated  = 1 << 20          // bytes of a generated file
)

// What ifup(8) reads (interfaces(5)): the administrator's file, files beside it, and among these the ones made here.
const (
	interfacesFile = "/etc/network/interfaces"
	interfacesDir  = "/etc/network/interfaces.d/"
	ownInterfaces  = interfacesDir + "quantix-"
	allowOptional  = "allow-optional" // a class of interfaces that nobody calls: who reads the file knows by it
)

// ofNetplan is what the generator writes below /run (src/networkd.c, src/nm.c, src/openvswitch.c of netplan), and what
// translate makes instead.
var ofNetplan = lazyregexp.New(`^(/run/(` +
	`systemd/network/[0-9]+-netplan-[^/]+|` +
	`systemd/system/(netplan-[^/]+|[^/]+\.wants/netplan-[^/]+|systemd-networkd-wait-online\.service\.d/10-netplan[^/]*)|` +
	`udev/rules\.d/[0-9]+-netplan[^/]*\.rules|` +
	`NetworkManager/(system-connections/netplan-[^/]+|conf\.d/(10-globally-managed-devices|netplan)\.conf)|` +
	`netplan/(wpa-[^/]+\.conf|\.[^/]+))|` +
	ownNetworkd + `[^/]+|` + ownProfiles + `[^/]+|` + interfacesFile + `|` + interfacesDir + `[^/]+)$`)

// forNetworkd and forNetworkManager say whose a file is.
func forNetworkd(file string) bool {
	return strings.HasPrefix(file, "/run/systemd/network/") || strings.HasPrefix(file, ownNetworkd)
}

func forNetworkManager(file string) bool {
	return strings.HasPrefix(file, "/run/NetworkManager/system-connections/") || strings.HasPrefix(file, ownProfiles)
}

// forIfupdown reports whether ifup reads a file.
func forIfupdown(file string) bool {
	return file == interfacesFile || strings.HasPrefix(file, interfacesDir)
}

// generated is a file that the generator made.
type generated struct {
	content        []byte
	mode, uid, gid uint32
	target         string // of a link; empty: it is none
}

// generate has netplan's generator make what renderers read of a set of files, in a directory of its own, and returns that by
// path. An error is what is wrong with the files.
func (r *Room) generate(ctx context.Context, set []*document) (map[string]*generated, error) {
	if r.guest.Answer != nil { // a test of a script runs no programs: the text is checked as far as the room does it itself
		return nil, nil
	}
	program, err := r.generator()
	if err != nil {
		if r.system.renderer == nil || !r.guest.Live {
			return nil, err
		}
		renderer, err := r.system.renderer(ctx)
		if err != nil {
			return nil, err
		}
		if renderer == byIfupdown {
			return r.forIfup(set)
		}
		return translate(set, renderer)
	}
	hash := append(fingerprint(set), r.identity(program)...)
	if made := r.made(hash, nil); made != nil {
		return made, nil
	}
	scratch, err := newScratch(r.guest.Root(), r.guest.Live)
	if err != nil {
		return nil, fault.On("a directory to check the configuration in", err)
	}
	defer scratch.remove()
	for _, d := range set {
		if err := scratch.put(d.path, d.text); err != nil {
			return nil, fault.On("a directory to check the configuration in", err)
		}
	}
	line := program + " --root-dir " + scratch.path
	result, err := r.guest.Run(ctx, guest.Command{Line: line, Readonly: true}, proc.Spec{
		Argv: []string{program, "--root-dir", scratch.path}, Root: r.guest.Root(), Tied: true, Timeout: generatorTime,
	})
	if err != nil {
		return nil, fault.On(program, err)
	}
	if err := result.Err(); err != nil {
		if text := complaint(string(result.Stderr), scratch.path); text != "" && !result.TimedOut {
			return nil, fault.Invalid("%s", text)
		}
		return nil, fault.On(program, err)
	}
	made, err := scratch.made()
	if err != nil {
		return nil, err
	}
	return r.made(hash, made), nil
}

// identity distinguishes a program from another one in its place.
func (r *Room) identity(program string) []byte {
	at, err := r.guest.Files.Follow(program)
	if err != nil {
		return nil
	}
	defer at.Close()
	meta, err := at.Stat()
	if err != nil {
		return nil
	}
	return fmt.Appendf(nil, "%s %d %v", program, meta.Size, meta.Mtime)
}

// made returns what the generator made last, if it was of files with this hash; nil: it was not. What it is given it keeps: the
// generator takes longer than all the rest, and the files are the same when they are set and when they are applied.
func (r *Room) made(hash []byte, files map[string]*generated) map[string]*generated {
	r.mu.Lock()
	defer r.mu.Unlock()
	if files != nil {
		r.lastHash, r.lastMade = hash, files
	}
	if !bytes.Equal(hash, r.lastHash) {
		return nil
	}
	return maps.Clone(r.lastMade)
}

// fingerprint is a hash of files and their texts.
func fingerprint(set []*document) []byte {
	hash := sha256.New()
	for _, d := range set {
		fmt.Fprintf(hash, "%d %s %d %s", len(d.path), d.path, len(d.text), d.text)
	}
	return hash.Sum(nil)
}

// generator returns the path of the generator.
func (r *Room) generator() (string, error) {
	for _, path := range generators {
		at, err := r.guest.Files.Follow(path)
		if err != nil {
			continue
		}
		meta, err := at.Stat()
		_ = at.Close()
		if err == nil && meta.Kind == fsys.File && meta.Mode&0o111 != 0 {
			return path, nil
		}
	}
	return "", &fault.Error{
		Err:  fault.Unsupported("netplan's generator is not there: %s", generators[0]),
		Hint: "the package netplan.io, or netplan-generator, has it",
	}
}

// complaint is what the generator says of the files: its error, and where that is silent its warnings, without the lines that
// only repeat the place.
func complaint(stderr, scratch string) string {
	var errors, warnings []string
	for line := range strings.Lines(strings.ReplaceAll(stderr, scratch, "")) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.Trim(line, "^ ") == "":
		case strings.Contains(line, "Permissions for "):
		case strings.HasPrefix(line, "**") || strings.Contains(line, "WARNING"):
			warnings = append(warnings, line)
		default:
			errors = append(errors, line)
		}
	}
	if len(errors) == 0 {
		errors = warnings
	}
	if len(errors) == 0 {
		return ""
	}
	// The first line says what is wrong; the next one quotes the file, where there may be a secret.
	return errors[0]
}

// scratch is a directory, that nobody else reads, with files of netplan in it.
type scratch struct {
	root *os.Root // of the guest
	path string   // of the directory, in the guest

	parent  string
	changed time.Time // when that was changed; zero: others change it as well
}

// scratchName is what the name of such a directory begins with.
const scratchName = "quantix-netplan-"

// scratchDirs are where it is made: in memory where that is possible.
var scratchDirs = []string{"run", "tmp"}

// newScratch makes the directory: in memory where there is /run, since files of netplan may hold secrets.
func newScratch(dir string, live bool) (s *scratch, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.Cause(err)
	}
	s = &scratch{root: root}
	for _, parent := range scratchDirs {
		if info, err := root.Stat(parent); err == nil && !live {
			s.parent, s.changed = parent, info.ModTime()
		}
		s.path = "/" + parent + "/" + scratchName + rand.Text()
		if err = root.Mkdir(s.path[1:], 0o700); err == nil {
			return s, nil
		}
	}
	return nil, errors.Join(fault.Cause(err), root.Close())
}

// sweep removes the directories of an earlier agent that was killed: there may be secrets in them. It looks into the first of
// scratchDirs alone, which is root's: a name in /tmp may be any user's, who could hold up all that comes after this. What
// cannot be removed stays.
func (r *Room) sweep(context.Context) error {
	if r.mayApply() != nil || r.guest.Answer != nil {
		return nil
	}
	left, _ := filepath.Glob("/" + scratchDirs[0] + "/" + scratchName + "*") // the pattern is a good one
	for _, dir := range left {
		_ = os.RemoveAll(dir)
	}
	return nil
}

func (s *scratch) remove() {
	_ = s.root.RemoveAll(s.path[1:])
	if !s.changed.IsZero() { // a tree is as it was
		_ = s.root.Chtimes(s.parent, time.Time{}, s.changed)
	}
	_ = s.root.Close()
}

func (s *scratch) put(path string, text []byte) error {
	name := s.path[1:] + path
	if err := s.root.MkdirAll(filepath.ToSlash(filepath.Dir(name)), 0o700); err != nil {
		return fault.Cause(err)
	}
	return fault.Cause(s.root.WriteFile(name, text, 0o600))
}

// made returns what the generator made in the directory.
func (s *scratch) made() (map[string]*generated, error) {
	return readGenerated(s.root, s.path[1:], "run")
}

// readGenerated returns the generator's files below a directory, by their path from there on, that are in one of the given
// ones there.
func readGenerated(root *os.Root, dir string, in ...string) (map[string]*generated, error) {
	all := map[string]*generated{}
	for _, top := range in {
		begin := filepath.ToSlash(filepath.Join(dir, top))
		err := fs.WalkDir(root.FS(), begin, func(name string, entry fs.DirEntry, err error) error {
			path := "/" + strings.TrimPrefix(strings.TrimPrefix(name, dir), "/")
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil:
				return fault.On(path, err)
			case entry.IsDir():
				if !leadsTo(path) {
					return fs.SkipDir
				}
				return nil
			case !ofNetplan().MatchString(path):
				return nil
			}
			file, err := readOne(root, name)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil {
				all[path] = file
			}
			return fault.On(path, err)
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// leadsTo reports whether the generator's files may be below a directory: the rest is not walked through.
func leadsTo(dir string) bool {
	tops := []string{"/run/systemd/network", "/run/systemd/system", "/run/udev/rules.d", "/run/NetworkManager/system-connections",
		"/run/NetworkManager/conf.d", "/run/netplan", "/etc/systemd/network", "/etc/NetworkManager/system-connections", "/etc/network/interfaces.d"}
	return slices.ContainsFunc(tops, func(top string) bool {
		return strings.HasPrefix(top+"/", dir+"/") || top == "/run/systemd/system" && filepath.ToSlash(filepath.Dir(dir)) == top
	})
}

func readOne(root *os.Root, name string) (*generated, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return nil, fault.Cause(err)
	}
	g := &generated{mode: uint32(info.Mode().Perm())}
	g.uid, g.gid = ownerOf(info)
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		g.target, err = root.Readlink(name)
	case !info.Mode().IsRegular():
		err = fault.Refuse("it is not a regular file")
	case info.Size() > maxGenerated:
		err = fault.ErrTooLarge
	default:
		g.content, err = root.ReadFile(name)
	}
	return g, fault.Cause(err)
}

// sorted are the paths of a set, in order.
func sorted(set map[string]*generated) []string { return slices.Sorted(maps.Keys(set)) }
