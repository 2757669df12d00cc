package port

import (
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Who polls a port for a write wakes up its reader: the kernel fetches what has come for the poll, and drops the interrupt that
// would have done so. Here the reader has had its wake-up before it could see anything.
func TestPollWakesTheReader(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	port := &virtioPort{name: "test", file: os.NewFile(uintptr(pair[0]), "test")}
	defer port.file.Close()
	defer unix.Close(pair[1])
	if port.raw, err = port.file.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	session := &virtioSession{port: port}
	var visible atomic.Bool
	looked, done := make(chan struct{}, 100), make(chan error, 1)
	go func() {
		done <- session.retry(port.raw.Read, func(uintptr) bool {
			seen := visible.Load()
			looked <- struct{}{}
			return seen
		}, session.clearRead)
	}()
	<-looked
	if _, err := unix.Write(pair[1], []byte("x")); err != nil {
		t.Fatal(err)
	}
	<-looked // the wake-up that came with it
	visible.Store(true)
	if err := port.raw.Control(func(fd uintptr) { _, _, err = port.poll(fd) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second): // it would for ever
		t.Error("the reader sleeps on")
	}
}
