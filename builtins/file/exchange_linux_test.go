package file_test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// exchangeOnce gives two names each other's object as soon as the file at the first one changes its size.
func (g *guest) exchangeOnce(a, b string) (done chan error) {
	g.t.Helper()
	watched, err := os.Open(g.dir + a)
	must(g.t, err)
	before, err := watched.Stat()
	must(g.t, err)
	done = make(chan error, 1)
	go func() {
		defer watched.Close()
		for {
			now, err := watched.Stat()
			if err != nil || now.Size() != before.Size() {
				done <- unix.Renameat2(unix.AT_FDCWD, g.dir+a, unix.AT_FDCWD, g.dir+b, unix.RENAME_EXCHANGE)
				return
			}
		}
	}()
	return done
}

// Who exchanges the name of a file while it is written in place does not have another file get its mode, and nobody is told
// that the new content is there.
func TestWhatIsWrittenInPlaceGetsTheAttributes(t *testing.T) {
	long := []byte(strings.Repeat("0123456789abcdef", 512<<10))
	list := chunks("/f", long, 1<<20)
	for _, chunk := range list {
		chunk.Mode = 0o666
	}
	last := len(list) - 1
	for name, write := range map[string]func(g *guest) error{
		"script": func(g *guest) error {
			_, err := run[proto.Message](g, "file.write", &pb.WriteFileArgs{Path: "/f", Content: long, Inplace: true, Mode: "0666"})
			return err
		},
		"host": func(g *guest) error { // in place, since there is another name
			must(t, os.Link(g.dir+"/f", g.dir+"/also"))
			g.send(list[:last]...)
			_, err := run[proto.Message](g, "", list[last])
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			told := false
			for n := 0; n < 50 && !told; n++ { // the exchange may come too late
				g := newGuest(t, file.Config{})
				g.write("/f", "old")
				g.write("/secret", "root's alone")
				must(t, os.Chmod(g.dir+"/secret", 0o600))
				done := g.exchangeOnce("/f", "/secret")
				err := write(g)
				must(t, <-done)
				if told = fault.Code(err) == "changed"; err != nil && !told {
					t.Fatal(err)
				}
				g.has("/f", "root's alone")
				if info, err := os.Stat(g.dir + "/f"); err != nil || info.Mode() != 0o600 {
					t.Fatalf("the other file has mode %v, %v", info.Mode(), err)
				}
				if info, err := os.Stat(g.dir + "/secret"); err != nil || (info.Mode() == 0o666) == told {
					t.Fatalf("told %v, and the file that was written has mode %v, %v", told, info.Mode(), err)
				}
			}
			if !told {
				t.Error("the exchange was never told")
			}
		})
	}
}

// An upload is for the directory that its path led to with the first chunk. Where that was moved, or exchanged for another one,
// the host is told, nothing of it is left, and what took the place stays.
func TestAnUploadIntoADirectoryThatWasMoved(t *testing.T) {
	data := random(30)
	for name, c := range map[string]struct {
		first, then func(g *guest)
		fine        bool
	}{
		"moved":     {then: func(g *guest) {}},
		"exchanged": {then: func(g *guest) { g.mkdir("/d") }},
		"was there": {first: func(g *guest) { g.mkdir("/d") }, then: func(g *guest) { g.mkdir("/d") }},
		"elsewhere": {then: func(g *guest) { g.mkdir("/other"); must(t, os.Symlink("other", g.dir+"/d")) }},
		"a link":    {then: func(g *guest) { must(t, os.Symlink("d2", g.dir+"/d")) }, fine: true},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, file.Config{})
			if c.first != nil {
				c.first(g)
			}
			list := chunks("/d/f", data, 10)
			g.send(list[:2]...)
			must(t, os.Rename(g.dir+"/d", g.dir+"/d2"))
			c.then(g)
			if c.fine {
				g.send(list[2])
				g.has("/d2/f", string(data))
				return
			}
			g.refused("changed", "", list[2])
			g.names("/d2")
			if name == "exchanged" || name == "was there" {
				g.names("/d")
			}
			must(t, os.RemoveAll(g.dir+"/d"))
			g.send(list...)
			g.has("/d/f", string(data))
		})
	}
}
