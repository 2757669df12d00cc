package quiesce

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// hung is a file system whose freeze hangs, as on a disk that does not answer, until it is let go.
type hung struct {
	target
	begun, release chan struct{}
}

func (h *hung) Freeze() error {
	close(h.begun)
	<-h.release
	return h.target.Freeze()
}

// hang makes the freeze of what is mounted at a point hang.
func hang(t *testing.T, r *Room, point string) *hung {
	t.Helper()
	h := &hung{begun: make(chan struct{}), release: make(chan struct{})}
	open := r.openTarget
	r.openTarget = func(path string) (target, error) {
		opened, err := open(path)
		if err != nil || path != point {
			return opened, err
		}
		h.target = opened
		return h, nil
	}
	t.Cleanup(sync.OnceFunc(func() {
		select {
		case <-h.release:
		default:
			close(h.release)
		}
	}))
	return h
}

// A freeze that hangs has a deadline; the others are thawed, a thaw answers meanwhile, and what hung thaws when its freeze
// comes to its end after all.
func TestFreezeThatHangs(t *testing.T) {
	r := newRoom(t, Config{})
	a, b := disk(t, "a"), disk(t, "b")
	h := hang(t, r, b)
	r.freezeTime = time.Second
	failed := make(chan error, 1)
	go func() {
		_, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a, b}})
		failed <- err
	}()
	select {
	case <-h.begun:
	case err := <-failed:
		t.Fatal(err)
	}
	if canWrite(t, a) {
		t.Error("the first is not frozen yet")
	}
	err := <-failed
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), b) {
		t.Error(err)
	}
	if !canWrite(t, a) {
		t.Error("the other is still frozen")
	}
	if s := r.config.Frozen.Check(builtins.Access{Writes: []string{b + "/x"}}); s == nil {
		t.Error("it may freeze at any moment, and nothing says so")
	}
	close(h.release)
	eventually(t, "the late freeze is thawed", func() bool { return !r.config.Frozen.HoldsPoint(b) })
	if !canWrite(t, b) {
		t.Error("the late freeze lasts")
	}
}

// A thaw while a freeze hangs interrupts it, thaws the others and answers before that freeze ends.
func TestThawWhileAFreezeHangs(t *testing.T) {
	r := newRoom(t, Config{})
	a, b := disk(t, "a"), disk(t, "b")
	h := hang(t, r, b)
	failed := make(chan error, 1)
	go func() {
		_, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a, b}})
		failed <- err
	}()
	<-h.begun
	out, err := r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{})
	reply := failedThaw(err).(*pb.ThawFilesystemsResponse)
	if out != nil || !slices.Equal(reply.ThawedMountPoints, []string{a}) || !strings.Contains(err.Error(), b) {
		t.Error(reply, err)
	}
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if !canWrite(t, a) {
		t.Error("it is still frozen")
	}
	close(h.release)
	eventually(t, "the late freeze is thawed", func() bool { return !r.config.Frozen.HoldsPoint(b) })
	if !canWrite(t, b) {
		t.Error("the late freeze lasts")
	}
}

// slow is a file system whose thaw takes long.
type slow struct {
	target
	release chan struct{}
}

func (s *slow) Thaw() (bool, error) {
	<-s.release
	return s.target.Thaw()
}

// A thaw that takes long is waited for, one that hangs is told; the others are thawed meanwhile.
func TestThawThatTakesLong(t *testing.T) {
	r := newRoom(t, Config{})
	a, b := disk(t, "a"), disk(t, "b")
	s := &slow{release: make(chan struct{})}
	open := r.openTarget
	r.openTarget = func(path string) (target, error) {
		opened, err := open(path)
		if err != nil || path != b {
			return opened, err
		}
		s.target = opened
		return s, nil
	}
	out := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a, b}})
	_, err := r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken})
	reply := failedThaw(err).(*pb.ThawFilesystemsResponse)
	if !errors.Is(err, fault.ErrBusy) || !slices.Equal(reply.ThawedMountPoints, []string{a}) || !strings.Contains(err.Error(), b) {
		t.Error(reply, err)
	}
	if !canWrite(t, a) {
		t.Error("the other is still frozen")
	}
	_, err = r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken})
	if reply := failedThaw(err).(*pb.ThawFilesystemsResponse); !errors.Is(err, fault.ErrBusy) || len(reply.ThawedMountPoints) > 0 {
		t.Error("asked again: ", reply, err)
	}
	close(s.release)
	eventually(t, "it is thawed", func() bool { return !r.config.Frozen.HoldsPoint(b) })
	again := mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken}) // who asks again is told of the end
	if !slices.Equal(again.ThawedMountPoints, []string{b}) || again.ThawedEarly || again.FrozenDurationMs < 700 {
		t.Error(again)
	}
	if _, err := r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken}); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it is told twice: ", err)
	}
	out = mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{b}, TimeoutSeconds: 1})
	s.release = make(chan struct{})
	if _, err := r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken}); !errors.Is(err, fault.ErrBusy) {
		t.Error(err)
	}
	time.Sleep(time.Second) // its time is up, and the thaw has begun before
	close(s.release)
	eventually(t, "it is thawed", func() bool { return !r.config.Frozen.HoldsPoint(b) })
	if done := mustThaw(t, r, &pb.ThawFilesystemsRequest{}); done.ThawedEarly || !slices.Equal(done.ThawedMountPoints, []string{b}) {
		t.Error(done)
	}
	mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{b}})
	s.release = make(chan struct{})
	time.AfterFunc(thawEach+100*time.Millisecond, func() { close(s.release) })
	mustThaw(t, r, &pb.ThawFilesystemsRequest{})
}

// What is frozen after the sender of the request has given up is thawed again.
func TestFreezeThatIsTooLateForItsSender(t *testing.T) {
	r := newRoom(t, Config{})
	a, b := disk(t, "a"), disk(t, "b")
	h := hang(t, r, b)
	ctx, cancel := context.WithTimeout(t.Context(), replySpare+time.Second)
	defer cancel()
	_, err := r.quiesce(ctx, &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a, b}})
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil && !canWrite(t, a) {
		t.Error(err)
	}
	close(h.release)
	eventually(t, "all is thawed", func() bool { return !r.config.Frozen.HoldsPoint(a) && !r.config.Frozen.HoldsPoint(b) })
	if !canWrite(t, a) || !canWrite(t, b) {
		t.Error("the late freeze lasts")
	}
	received := time.Now().Add(-replyTime) // a host that says nothing, and waited for too long already
	if _, err := r.quiesce(t.Context(), &builtins.Call{Received: received}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// A path that does not answer, as one over a server that is gone, is named in time, and nothing is frozen.
func TestPathThatDoesNotAnswer(t *testing.T) {
	r := newRoom(t, Config{})
	a, b := disk(t, "a"), disk(t, "b")
	release := make(chan struct{})
	open := r.openTarget
	r.openTarget = func(path string) (target, error) {
		if path == b {
			<-release
		}
		return open(path)
	}
	r.freezeTime = 500 * time.Millisecond
	out, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a, b}})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), b) || !canWrite(t, a) {
		t.Error(out, err)
	}
	if _, err := r.trim(t.Context(), &builtins.Call{}, &pb.TrimRequest{MountPoints: []string{b}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	r.freezeTime = freezeTime
	close(release) // what was opened is closed, or the disks could not be unmounted
	mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a, b}})
	mustThaw(t, r, &pb.ThawFilesystemsRequest{})
}

// A file system in user space whose program does not answer is told by its type, and what is asked for beside it is not frozen.
func TestFileSystemInUserSpaceThatHangs(t *testing.T) {
	r := newRoom(t, Config{})
	a, point := disk(t, "a"), t.TempDir()
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("needs /dev/fuse: ", err)
	}
	defer unix.Close(fuse)
	if err := unix.Mount("hangs", point, "fuse.sshfs", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse)); err != nil {
		t.Skip("cannot mount it: ", err)
	}
	defer unix.Unmount(point, unix.MNT_DETACH)
	begun := time.Now()
	out, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a, point}})
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "fuse.sshfs cannot be frozen") || !canWrite(t, a) {
		t.Error(out, err)
	}
	if took := time.Since(begun); took > r.freezeTime {
		t.Errorf("it took %v", took)
	}
	frozen := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}})
	mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: frozen.QuiesceToken})
}
