//go:build blocktest

package blocktest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// populate makes the tree that the transactions change. All times are old, so that none is right by chance.
func populate(dir string) error {
	in := func(name string) string { return filepath.Join(dir, name) }
	err := errors.Join(
		os.MkdirAll(in("etc/app.d/deep/er"), 0o755), os.MkdirAll(in("etc/tool/conf"), 0o755),
		os.WriteFile(in("etc/first"), []byte("first\n"), 0o644),
		os.WriteFile(in("etc/small"), []byte("small\n"), 0o640), os.Chown(in("etc/small"), 1234, 4321),
		unix.Setxattr(in("etc/small"), "user.note", []byte{0, 1, 2}, 0),
		os.WriteFile(in("etc/large"), largeContent('a'), 0o600),
		os.WriteFile(in("etc/empty"), nil, 0o644),
		os.WriteFile(in("etc/two"), []byte("two names"), 0o644), os.Link(in("etc/two"), in("etc/app.d/also-two")),
		os.Symlink("small", in("etc/link")),
		os.WriteFile(in("etc/app.d/one"), []byte("1"), 0o644),
		os.WriteFile(in("etc/app.d/deep/er/file"), []byte("deep"), 0o444),
		os.WriteFile(in("etc/program"), []byte("#!/bin/sh\n"), 0o755),
		os.WriteFile(in("etc/tool/db"), largeContent('d'), 0o644),
		os.WriteFile(in("etc/tool/pair"), []byte("a file\n"), 0o644), os.Link(in("etc/tool/pair"), in("etc/tool/pair-too")),
		os.WriteFile(in("etc/tool/conf/a"), []byte("a = 1\n"), 0o644),
		os.WriteFile(in("etc/tool/conf/b"), []byte("b = 1\n"), 0o644),
	)
	if err != nil {
		return err
	}
	var paths []string
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	slices.Reverse(paths)
	for i, path := range paths {
		when := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9 + int64(i), Nsec: 123456789}}
		err = errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, when, unix.AT_SYMLINK_NOFOLLOW))
	}
	return err
}

// largeContent returns more than the journal puts into a record.
func largeContent(c byte) []byte {
	data := make([]byte, 50_000)
	for i := range data {
		data[i] = c + byte(i/block%7)
	}
	return data
}

// describeTree describes all that is below a directory: kind, mode, owner, time, attributes, content, target and names.
func describeTree(dir string) (map[string]string, error) {
	all, names := map[string]string{}, map[uint64][]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		text := fmt.Sprintf("mode %o owner %d:%d time %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		content := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			var data []byte
			data, err = os.ReadFile(path)
			content = fmt.Sprintf(" %d bytes %.8x", len(data), sha256.Sum256(data))
			names[st.Ino] = append(names[st.Ino], rel)
		case unix.S_IFLNK:
			content, err = os.Readlink(path)
		}
		all[rel] = text + " " + content + attributes(path)
		return err
	})
	for _, list := range names {
		for _, name := range list {
			all[name] += " names " + strings.Join(list, ",")
		}
	}
	return all, err
}

func attributes(path string) string {
	buffer := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buffer)
	if err != nil || n == 0 {
		return ""
	}
	list := bytes.Split(bytes.TrimRight(buffer[:n], "\x00"), []byte{0})
	text := ""
	for _, name := range list {
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, string(name), value)
		text += fmt.Sprintf(" %s=%x %v", name, value[:max(n, 0)], err)
	}
	return text
}

// differences describes how two results of describeTree differ; "" if they do not.
func differences(want, got map[string]string) string {
	var list []string
	for name, w := range want {
		if g, ok := got[name]; !ok {
			list = append(list, name+" is missing: "+w)
		} else if g != w {
			list = append(list, name+"\n  should be "+w+"\n  and is    "+g)
		}
	}
	for name, g := range got {
		if _, ok := want[name]; !ok {
			list = append(list, name+" is too much: "+g)
		}
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}
