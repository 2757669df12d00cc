package fsys

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

func (r *realRoot) automount(path string) (Mount, bool, error) {
	root, err := os.Readlink(descriptor{fd: r.handle}.path())
	if err != nil {
		return Mount{}, false, fault.Cause(err)
	}
	mounts, err := readMounts()
	if err != nil {
		return Mount{}, false, err
	}
	full := strings.TrimSuffix(root, "/") + "/" + strings.Join(Elements(path), "/")
	var top mountLine
	for _, m := range mounts {
		if Within(full, m.point) && len(m.point) >= len(top.point) { // of two at one point the later is above
			top = m
		}
	}
	if top.kind != "autofs" {
		return Mount{}, false, nil
	}
	if top.point == root || !Within(top.point, root) { // the root itself lies in it, and is open
		return Mount{}, false, nil
	}
	point := strings.TrimPrefix(strings.TrimPrefix(top.point, root), "/")
	return Mount{
		Point: "/" + text.EscapePath(point), Dir: text.EscapePath(top.dir), Type: top.kind, Source: text.EscapePath(top.source),
		Device: top.device, Number: top.number,
	}, true, nil
}

func (r *realRoot) trigger(path string) error {
	fd, err := unix.Openat2(r.handle, strings.Join(Elements(path), "/"), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, // without O_DIRECTORY the last element is not mounted
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
