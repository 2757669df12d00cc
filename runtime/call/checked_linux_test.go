package call_test

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/runtime/policy"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// swapped is an agent's table under a policy, over a tree in which somebody exchanges what a path leads to all the
// time.
type swapped struct {
	t     *testing.T
	dir   string
	calls *call.Executor
	files *fsys.Root
}

func newSwapped(t *testing.T, security string) *swapped {
	s := &swapped{t: t, dir: t.TempDir()}
	for _, dir := range []string{"/etc", "/srv", "/srv/x", "/srv/list", "/away", "/empty"} {
		s.do(os.Mkdir(s.dir+dir, 0o755))
	}
	for path, content := range map[string]string{
		"/etc/shadow": "secret", "/srv/x/f": "open", "/away/f": "secret", "/srv/f": "open",
	} {
		s.do(os.WriteFile(s.dir+path, []byte(content), 0o644))
	}
	s.do(
		os.Link(s.dir+"/etc/shadow", s.dir+"/srv/hard"), os.Symlink("/away", s.dir+"/srv/y"),
		os.Symlink("/etc", s.dir+"/srv/z"),
	)
	files, err := fsys.Open(s.dir)
	s.do(err)
	t.Cleanup(func() { files.Close() })
	rooms := all.New(all.Config{Files: files, Dir: s.dir})
	t.Cleanup(func() { rooms.Close() })
	table := builtins.NewTable(rooms.List()...)
	conf, _, err := config.Parse([]byte("security:\n" + security))
	s.do(err)
	p, err := policy.New(conf.Security, &policy.Guest{Files: files}, table.Ops())
	s.do(err)
	current := &policy.Current{}
	current.Set(p)
	s.files, s.calls = files, call.New(call.Config{Table: table, Files: files, Policy: current})
	return s
}

func (s *swapped) do(errs ...error) {
	s.t.Helper()
	if err := errors.Join(errs...); err != nil {
		s.t.Fatal(err)
	}
}

// swap exchanges two names until the test ends.
func (s *swapped) swap(a, b string) {
	var work sync.WaitGroup
	stop := make(chan struct{})
	work.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, s.dir+a, unix.AT_FDCWD, s.dir+b, unix.RENAME_EXCHANGE)
			}
		}
	})
	s.t.Cleanup(func() { close(stop); work.Wait() })
}

// run sends a request as the host does, or as a script does by the name of a row.
func (s *swapped) run(name string, in proto.Message) (proto.Message, error) {
	from := &builtins.Call{Port: "0"}
	if name == "" {
		return s.calls.Execute(s.t.Context(), from, s.calls.Native(in), in)
	}
	bind := func(*builtins.Op) (proto.Message, error) { return in, nil }
	_, out, err := s.calls.Begin(call.RunConfig{Call: from}).Call(s.t.Context(), name, bind)
	return out, err
}

// What a path leads to may be exchanged between the look of the policy and the operation; nothing denied is ever read.
func TestNoDeniedFileIsReadWhilePathsAreExchanged(t *testing.T) {
	s := newSwapped(t, "  deny_file_read_paths: [/etc, /away]\n")
	s.swap("/srv/f", "/srv/hard")
	s.swap("/srv/x", "/srv/y")
	s.swap("/srv/list", "/srv/z")
	read, refused := 0, 0
	for end := time.Now().Add(400 * time.Millisecond); time.Now().Before(end); {
		for _, path := range []string{"/srv/f", "/srv/x/f"} {
			for name, in := range map[string]proto.Message{
				"":          &pb.FileReadRequest{Path: path},
				"file.read": &pb.ReadFileArgs{Path: path},
				"file.copy": &pb.FromToArgs{From: path, To: "/empty/copy"},
			} {
				out, err := s.run(name, in)
				switch out := out.(type) {
				case *pb.FileReadResponse:
					s.open(out.GetData(), err)
				case *pb.Content:
					s.open(out.GetContent(), err)
				case *pb.Changed:
					data, e := os.ReadFile(s.dir + "/empty/copy")
					s.open(data, errors.Join(err, e))
				}
				if err == nil {
					read++
				} else {
					refused++
				}
			}
		}
		out, err := s.run("", &pb.ListDirectoryRequest{Path: "/srv/list"})
		if err == nil && len(out.(*pb.ListDirectoryResponse).Entries) > 0 {
			t.Fatal("a denied directory was listed")
		}
	}
	if read == 0 || refused == 0 {
		t.Errorf("%d reads, %d refusals: the test tests nothing", read, refused)
	}
}

// open fails if a content is not that of the file that may be read.
func (s *swapped) open(data []byte, err error) {
	s.t.Helper()
	if err == nil && string(data) != "open" {
		s.t.Fatalf("read %q", data)
	}
}

// The same for what is written, in place too, and for attributes.
func TestNothingElseIsWrittenWhilePathsAreExchanged(t *testing.T) {
	s := newSwapped(t, "  allow_file_write_paths: [/srv]\n")
	s.swap("/srv/f", "/srv/hard")
	s.swap("/srv/x", "/srv/y")
	written := 0
	for end := time.Now().Add(400 * time.Millisecond); time.Now().Before(end); {
		for _, path := range []string{"/srv/f", "/srv/x/f"} {
			for name, in := range map[string]proto.Message{
				"":            &pb.FileWriteRequest{Path: path, Data: []byte("open"), Eof: true},
				"file.append": &pb.WriteFileArgs{Path: path, Content: []byte("!"), Inplace: true},
				"file.chmod":  &pb.ChmodArgs{Path: path, Mode: "0600"},
				"file.mkdir":  &pb.MkdirArgs{Path: "/srv/x/made"},
			} {
				if _, err := s.run(name, in); err == nil {
					written++
				}
			}
		}
		for _, path := range []string{"/etc/shadow", "/away/f"} {
			data, err := os.ReadFile(s.dir + path)
			info, e := os.Stat(s.dir + path)
			s.do(err, e)
			if string(data) != "secret" || info.Mode().Perm() != 0o644 {
				t.Fatalf("%s: %q %v", path, data, info.Mode())
			}
		}
		if _, err := os.Stat(s.dir + "/away/made"); err == nil {
			t.Fatal("a directory was made elsewhere")
		}
	}
	if written == 0 {
		t.Error("nothing was written: the test tests nothing")
	}
}

// A dry run is checked in what it pretends: a link that it pretends to have made leads to what is denied all the same.
func TestADryRunReadsNothingDenied(t *testing.T) {
	s := newSwapped(t, "  deny_file_read_paths: [/etc, /away]\n")
	overlay, err := s.files.Overlay(t.TempDir() + "/plan")
	s.do(err)
	defer overlay.Close()
	run := s.calls.Begin(call.RunConfig{Call: &builtins.Call{Port: "0"}, DryRun: &builtins.DryRun{Files: overlay}})
	do := func(name string, in proto.Message) (proto.Message, error) {
		_, out, err := run.Call(t.Context(), name, func(*builtins.Op) (proto.Message, error) { return in, nil })
		return out, err
	}
	_, err = do("file.symlink", &pb.SymlinkArgs{Target: "/etc/shadow", Path: "/srv/pretended"})
	s.do(err)
	if out, err := do("file.read", &pb.ReadFileArgs{Path: "/srv/pretended"}); err == nil {
		t.Errorf("read %v", out)
	}
	_, err = do("file.write", &pb.WriteFileArgs{Path: "/srv/f", Content: []byte("new")})
	s.do(err)
	out, err := do("file.read", &pb.ReadFileArgs{Path: "/srv/f"})
	if err != nil || string(out.(*pb.Content).Content) != "new" {
		t.Errorf("what is pretended: %v, %v", out, err)
	}
}
