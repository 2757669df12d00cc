package wait

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (r *Room) file(ctx context.Context, path string) (*pb.WaitResponse, error) {
	switch {
	case !filepath.IsAbs(path) || strings.Contains(path, "\x00"):
		return nil, fault.Invalid("%q is no absolute path", path)
	case r.guest.Files == nil:
		return nil, fault.Unsupported("there are no files to wait for")
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	mounts, err := fsys.WatchMounts(ctx) // a file may be on what is mounted later
	if err != nil {
		mounts = nil // it is still seen where no mount is made
	}
	for {
		names := namesOnWay(r.guest.Root(), path)
		watch, err := watchNames(names)
		if err != nil {
			return nil, fault.On(path, err)
		}
		found, err := r.exists(path)
		if err != nil || found {
			watch.close()
			return &pb.WaitResponse{}, err
		}
		if maps.Equal(names, namesOnWay(r.guest.Root(), path)) { // else the way has changed meanwhile
			select {
			case <-watch.touched:
			case <-mounts:
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		watch.close()
		if err != nil {
			return nil, err
		}
	}
}

// name is one that leads to a path: an entry of a directory.
type name struct{ dir, name string }

// maxLinks is how many links may be on a way, as for the kernel (path_resolution(7)).
const maxLinks = 40

// namesOnWay returns the entries that lead to a path below root, links among them and what these lead to, up to the first that
// is missing.
func namesOnWay(root, path string) map[name]bool {
	way := map[name]bool{}
	at, links := "/", 0
	for rest := strings.Split(path, "/"); len(rest) > 0; {
		element := rest[0]
		rest = rest[1:]
		switch element {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		way[name{filepath.Join(root, at), element}] = true
		full := filepath.Join(root, at, element)
		info, err := os.Lstat(full)
		if err != nil {
			return way
		}
		if info.Mode()&os.ModeSymlink == 0 {
			at = filepath.Join(at, element)
			continue
		}
		target, err := os.Readlink(full)
		if links++; err != nil || links > maxLinks {
			return way
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return way
}

// nameWatch reports when one of some entries may have come or gone.
type nameWatch struct {
	touched chan struct{} // receives a value then
	events  *os.File
	done    chan struct{}
}

// watchNames watches entries of directories. What is no directory by now is left out: then the entry above it has changed.
func watchNames(names map[name]bool) (*nameWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	w := &nameWatch{touched: make(chan struct{}, 1), events: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{})}
	const mask = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF |
		unix.IN_ONLYDIR
	wanted := map[int]map[string]bool{} // by watch
	for n := range names {
		number, err := unix.InotifyAddWatch(fd, n.dir, mask)
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP):
			continue
		default:
			return nil, errors.Join(os.NewSyscallError("inotify_add_watch", err), w.events.Close())
		}
		if wanted[number] == nil {
			wanted[number] = map[string]bool{}
		}
		wanted[number][n.name] = true
	}
	go w.read(wanted)
	return w, nil
}

// read waits for events until the watch is closed.
func (w *nameWatch) read(wanted map[int]map[string]bool) {
	defer close(w.done)
	buffer := make([]byte, 16<<10)
	for {
		n, err := w.events.Read(buffer)
		if err != nil {
			return
		}
		if matters(buffer[:n], wanted) {
			select {
			case w.touched <- struct{}{}:
			default:
			}
		}
	}
}

// matters reports whether one of some events, inotify_event structures of inotify(7), is of a wanted name, or of a directory
// itself.
func matters(events []byte, wanted map[int]map[string]bool) bool {
	for len(events) >= unix.SizeofInotifyEvent {
		number, mask := int(int32(binary.NativeEndian.Uint32(events))), binary.NativeEndian.Uint32(events[4:])
		size := int(binary.NativeEndian.Uint32(events[12:]))
		end := min(unix.SizeofInotifyEvent+size, len(events))
		text, _, _ := bytes.Cut(events[unix.SizeofInotifyEvent:end], []byte{0})
		const itself = unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_IGNORED | unix.IN_UNMOUNT | unix.IN_Q_OVERFLOW
		if mask&itself != 0 || wanted[number][string(text)] {
			return true
		}
		events = events[end:]
	}
	return false
}

func (w *nameWatch) close() {
	_ = w.events.Close()
	<-w.done
}
