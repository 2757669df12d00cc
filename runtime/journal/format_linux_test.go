package journal

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/runtime/journal/internal/frames"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A directory of another format is not used, and stays as it is: an agent that serves without transactions says why.
func TestDirectoryOfANewerFormat(t *testing.T) {
	p := newTestDirs(t)
	g, err := openGuest(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.journal.Close(); err != nil {
		t.Fatal(err)
	}
	format := filepath.Join(p.state, formatFile)
	if text, err := os.ReadFile(format); err != nil || string(text) != "1\n" {
		t.Fatalf("%q %v", text, err)
	}
	if err := CheckFormat(p.state); err != nil {
		t.Error(err)
	}
	for text, want := range map[string]string{"2\n": "format version 2, and this agent reads 1", "x\n": "no number of a format"} {
		if err := os.WriteFile(format, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := CheckFormat(p.state); err == nil || !strings.Contains(err.Error(), want) {
			t.Error(err)
		}
		if _, err := openGuest(p, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Error(err)
		}
		g, err := openGuest(p, func(c *Config) { c.Tolerant = true })
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.journal.Begin(t.Context(), Header{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Error(err)
		}
		if list, err := g.journal.Recover(t.Context(), nil); len(list) > 0 || err != nil {
			t.Error(list, err)
		}
		if err := g.journal.Close(); err != nil {
			t.Error(err)
		}
		if now, err := os.ReadFile(format); err != nil || string(now) != text {
			t.Errorf("%q %v", now, err)
		}
	}
	if err := CheckFormat(filepath.Join(p.state, "nowhere")); err != nil {
		t.Error(err)
	}
}

// What a newer agent left open stays for that one: nothing is taken back or moved, and no transaction may begin.
func TestTransactionOfANewerFormat(t *testing.T) {
	const id = "0123456789ab0123456789abcdef0123"
	for name, c := range map[string]struct {
		second []byte
		begin  *pb.JournalBegin
		want   string
		early  bool // CheckFormat tells it
	}{
		"version": {begin: &pb.JournalBegin{Version: 2, TransactionId: id}, want: "format version 2", early: true},
		"unknown record": {
			begin: &pb.JournalBegin{Version: 1, TransactionId: id}, second: []byte{0xfa, 0x3f, 0x01, 'x'}, want: "does not know",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newTestDirs(t)
			first, err := proto.Marshal(&pb.JournalRecord{Record: &pb.JournalRecord_Begin{Begin: c.begin}})
			if err != nil {
				t.Fatal(err)
			}
			chain := frames.NewChain(id)
			data := chain.Append(nil, first)
			if c.second != nil {
				data = chain.Append(data, c.second)
			}
			data = append(data, make([]byte, 4096)...)
			dir := filepath.Join(p.state, "open", id)
			if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "journal"), data, 0o600)); err != nil {
				t.Fatal(err)
			}
			if err := CheckFormat(p.state); (err != nil) != c.early {
				t.Error(err)
			}
			g, err := openGuest(p, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer g.journal.Close()
			for range 2 {
				list, err := g.journal.Recover(t.Context(), nil)
				if err != nil || len(list) != 1 || !list[0].Report.Halted || list[0].Err == nil {
					t.Fatalf("%+v %v", list, err)
				}
				if !strings.Contains(list[0].Err.Error(), c.want) {
					t.Fatalf("%+v %v", list, err)
				}
			}
			if _, err := g.journal.Begin(t.Context(), Header{}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Error(err)
			}
			if got := g.journal.Status().Error; !strings.Contains(got, c.want) {
				t.Error(got)
			}
			if now, err := os.ReadFile(filepath.Join(dir, "journal")); err != nil || string(now) != string(data) {
				t.Error("the log was changed: ", err)
			}
			if kept, err := os.ReadDir(filepath.Join(p.state, "kept")); err != nil || len(kept) > 0 {
				t.Error(kept, err)
			}
		})
	}
}
