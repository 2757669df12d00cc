package image

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Initramfs returns an initramfs, uncompressed, since unpacking costs an emulated machine more than reading: early becomes
// /init, the files of the directory modules go to /modules, programs (name to host path) to /rig and units (name to text)
// to /units.
func Initramfs(early, modules string, programs, units map[string]string) ([]byte, error) {
	var a archive
	for _, dir := range []string{"dev", "modules", "rig", "units", "newroot"} {
		a.add(dir, fs.ModeDir|0o755, nil)
	}
	a.addFile("init", early)
	entries, err := os.ReadDir(modules)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		a.addFile("modules/"+e.Name(), filepath.Join(modules, e.Name()))
	}
	for name, path := range programs {
		a.addFile("rig/"+name, path)
	}
	for name, text := range units {
		a.add("units/"+name, 0o644, []byte(text))
	}
	return a.finish()
}

// archive writes cpio's "newc" format, the one that the kernel unpacks: a head of 13 eight-digit hexadecimal numbers, the
// name, the content, each padded to four bytes (Documentation/driver-api/early-userspace/buffer-format.rst in Linux).
type archive struct {
	buf   bytes.Buffer
	inode int
	err   error
}

func (a *archive) addFile(name, path string) {
	data, err := os.ReadFile(path)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.add(name, 0o755, data)
}

func (a *archive) add(name string, mode fs.FileMode, data []byte) {
	const typeDir, typeFile = 0o040000, 0o100000
	kind := typeFile
	if mode.IsDir() {
		kind = typeDir
	}
	a.entry(name, kind|int(mode.Perm()), data)
}

func (a *archive) entry(name string, mode int, data []byte) {
	a.inode++
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.buf.WriteString(name + "\x00")
	a.pad()
	a.buf.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

func (a *archive) finish() ([]byte, error) {
	a.entry("TRAILER!!!", 0, nil)
	return a.buf.Bytes(), a.err
}
