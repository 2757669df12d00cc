package service

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// generatedDirs are where generators of systemd, and callers, put units: those are of this boot alone.
var generatedDirs = map[string]string{
	"/run/systemd/generator.early": "generated", "/run/systemd/generator": "generated", "/run/systemd/generator.late": "generated",
	"/run/systemd/transient": "transient",
}

// index is how all services of the running machine are enabled, by one look at each directory and file: in systemd's words, as
// tree.state has them, and what is so until the next boot alone.
type index struct {
	states map[unit]string
	wanted map[string]string    // by names of units how links enable them
	dirs   map[string]time.Time // those that were read, with the time of their last change; zero: there is none
	loaded uint64               // when systemd had read its files the last time, by its clock
	sure   bool                 // no directory had changed just before it was read
}

// coarse is how far apart changes may be that the kernel gives one time: a tick of 100 Hz, and more.
const coarse = 50 * time.Millisecond

// indexer makes an index.
type indexer struct {
	root  string // the root directory, for tests
	begun time.Time
	index *index
	files map[string][]fs.DirEntry // by directory
}

// newIndex reads the directories below root.
func newIndex(root string, loaded uint64) *index {
	x := &indexer{
		root: root, begun: time.Now(), files: map[string][]fs.DirEntry{},
		index: &index{
			states: map[unit]string{}, wanted: map[string]string{}, dirs: map[string]time.Time{}, loaded: loaded, sure: true,
		},
	}
	x.enabled(systemDir, "enabled")
	x.enabled("/run/systemd/system", runtime)
	for _, dir := range slices.Sorted(maps.Keys(generatedDirs)) {
		x.enabled(dir, runtime)
	}
	var seen []os.FileInfo
	for _, dir := range unitDirs {
		info, err := os.Stat(x.at(dir))
		if err != nil || slices.ContainsFunc(seen, func(other os.FileInfo) bool { return os.SameFile(info, other) }) {
			x.index.dirs[dir] = changed(info)
			continue
		}
		seen = append(seen, info)
		x.read(dir)
	}
	for _, dir := range unitDirs {
		for _, file := range x.files[dir] {
			u := unit(file.Name())
			if _, there := x.index.states[u]; !there && u.kindKnown() && u.kind() == suffix {
				x.index.states[u] = x.state(dir, u, file)
			}
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(generatedDirs)) {
		for _, file := range x.read(dir) {
			if u := unit(file.Name()); u.kindKnown() && u.kind() == suffix && x.index.states[u] == "" {
				x.index.states[u] = generatedDirs[dir]
			}
		}
	}
	return x.index
}

func (x *indexer) at(path string) string { return filepath.Join(x.root, path) }

// read returns what is in a directory, and notes when that was changed.
func (x *indexer) read(dir string) []fs.DirEntry {
	if list, done := x.files[dir]; done {
		return list
	}
	info, err := os.Stat(x.at(dir))
	if x.index.dirs[dir] = changed(info); err != nil {
		return nil
	}
	if x.begun.Sub(info.ModTime()) < coarse {
		x.index.sure = false
	}
	x.files[dir], _ = os.ReadDir(x.at(dir))
	return x.files[dir]
}

// changed is when a directory was changed; zero where there is none.
func changed(info os.FileInfo) time.Time {
	if info == nil {
		return time.Time{}
	}
	return info.ModTime()
}

// runtime is the state of what is enabled until the next boot.
const runtime = "enabled-runtime"

// enabled notes the links in a directory by which units are enabled.
func (x *indexer) enabled(dir, how string) {
	for _, entry := range x.read(dir) {
		path := dir + "/" + entry.Name()
		switch {
		case isLinkDir(entry.Name()):
			for _, link := range x.read(path) {
				x.want(link.Name(), how)
			}
		case entry.Type()&fs.ModeSymlink != 0:
			if target, err := os.Readlink(x.at(path)); err == nil && filepath.Base(target) != entry.Name() {
				x.want(filepath.Base(target), how) // by another name
			}
		}
	}
}

func (x *indexer) want(name, how string) {
	if x.index.wanted[name] == "" {
		x.index.wanted[name] = how
	}
}

// state says how the unit of a file is enabled.
func (x *indexer) state(dir string, u unit, file fs.DirEntry) string {
	path := dir + "/" + string(u)
	linked := false
	if file.Type()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(x.at(path))
		if err != nil {
			return ""
		}
		to := leads(dir, target)
		inside := slices.Contains(unitDirs, filepath.Dir(to))
		switch {
		case to == nullDevice:
			return maskedBy(dir)
		case filepath.Base(to) != string(u) && unit(filepath.Base(to)).kindKnown() && inside:
			return "alias"
		}
		linked = dir == systemDir && !inside
		if filepath.IsAbs(target) {
			path = to
		}
	}
	content, err := os.ReadFile(x.at(path))
	if err != nil || len(content) > maxUnitFile {
		return ""
	}
	if len(content) == 0 && dir != systemDir {
		return maskedBy(dir)
	}
	f := &found{unit: u}
	f.parse(string(content))
	var dirs []string
	for _, dir := range unitDirs {
		if x.has(dir, string(u)+".d") {
			dirs = append(dirs, dir+"/"+string(u)+".d")
		}
	}
	for _, path := range dropIns(dirs, x.names) {
		if content, err := os.ReadFile(x.at(path)); err == nil {
			f.parse(string(content))
		}
	}
	return f.word(x.index.wanted[string(u)], linked)
}

// maskedBy is the state of a unit that a file in a directory masks.
func maskedBy(dir string) string {
	if dir == "/run/systemd/system" {
		return "masked-runtime"
	}
	return "masked"
}

func (x *indexer) has(dir, name string) bool {
	list := x.files[dir] // sorted, as ReadDir says
	_, there := slices.BinarySearchFunc(list, name, func(e fs.DirEntry, name string) int { return strings.Compare(e.Name(), name) })
	return there
}

// names are what is in a directory.
func (x *indexer) names(dir string) (list []string) {
	for _, file := range x.read(dir) {
		list = append(list, file.Name())
	}
	return list
}

// current reports whether an index still holds: no directory that it is of was changed, and systemd read no files again.
func (x *index) current(root string, loaded uint64) bool {
	if x == nil || !x.sure || x.loaded != loaded {
		return false
	}
	for dir, when := range x.dirs {
		info, _ := os.Stat(filepath.Join(root, dir))
		if !changed(info).Equal(when) {
			return false
		}
	}
	return true
}

// of is how a unit is enabled; empty: it is not known.
func (x *index) of(u unit) string {
	if state, ok := x.states[u]; ok || u.template() == u {
		return state
	}
	if how := x.wanted[string(u)]; how != "" {
		return how
	}
	return x.states[u.template()]
}
