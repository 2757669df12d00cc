package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/runtime/journal/internal/frames"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// storeReply ends a transaction under a key, and waits until its reply is on the disk.
func storeReply(t *testing.T, g *guest, key string, reply *pb.RunScriptResponse) {
	t.Helper()
	tx, err := g.journal.Begin(t.Context(), Header{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tx.Commit(t.Context(), reply), tx.Close(t.Context(), nil)); err != nil {
		t.Fatal(err)
	}
	g.journal.cleanups.Wait()
}

func textReply(s string) *pb.RunScriptResponse {
	reply := committedReply()
	reply.Result = structpb.NewStringValue(s)
	return reply
}

// A clock that was set back does not make an older reply the latest.
func TestClockSetBack(t *testing.T) {
	p := newTestDirs(t)
	g := newGuest(t, p, nil)
	g.journal.lastID = time.Now().Add(time.Hour).UnixMilli() // as if the clock had been an hour ahead
	storeReply(t, g, "k", textReply("older"))
	for range 2 { // also after a restart
		if err := g.close(); err != nil {
			t.Fatal(err)
		}
		g = newGuest(t, p, nil)
		storeReply(t, g, "k", textReply("newer"))
		if e, err := g.journal.Stored(Ref{Key: "k"}); err != nil || e.Reply.Result.GetStringValue() != "newer" {
			t.Errorf("%v, %v", e, err)
		}
		if list, _, err := g.journal.List("", 1, anyPort); err != nil || list[0].Started.AsTime().After(time.Now()) {
			t.Errorf("%v, %v", list, err)
		}
	}
}

// Replies expire by the time that the guest ran, whatever its clock says.
func TestExpiry(t *testing.T) {
	const day = 24 * time.Hour
	p := newTestDirs(t)
	boot, up := "one", day
	change := func(c *Config) {
		c.BootID = func() string { return boot }
		c.Uptime = func() time.Duration { return up }
	}
	g := newGuest(t, p, change)
	stored := func(key string) bool {
		_, err := g.journal.Stored(Ref{Key: key})
		return err == nil
	}
	restart := func() {
		if err := g.close(); err != nil {
			t.Fatal(err)
		}
		g = newGuest(t, p, change)
	}
	storeReply(t, g, "a", committedReply())
	up = 21 * day
	storeReply(t, g, "b", committedReply())
	boot, up = "two", 9*day
	restart()
	if !stored("a") || !stored("b") {
		t.Error("expired after 29 days")
	}
	up = 11 * day
	if stored("a") || !stored("b") {
		t.Error("after 31 and 11 days:", stored("a"), stored("b"))
	}
	up = 31 * day
	restart()
	if stored("b") {
		t.Error("stored for 31 days")
	}
}

// Over the bound of the store the oldest replies are shortened, but what they reply to stays known; also those that an
// older agent stored as one record.
func TestStoreBound(t *testing.T) {
	p := newTestDirs(t)
	bound := func(c *Config) { c.Bytes = 200 << 10 }
	g := newGuest(t, p, bound)
	storeReply(t, g, "old", textReply(strings.Repeat("x", 100<<10)))
	rewriteAsOneRecord(t, g, p)
	if err := g.close(); err != nil {
		t.Fatal(err)
	}
	g = newGuest(t, p, bound)
	keys := []string{"old", "a", "b", "c"}
	for _, key := range keys[1:] {
		storeReply(t, g, key, textReply(strings.Repeat("x", 90<<10)))
	}
	for range 2 { // also after a restart
		for i, key := range keys {
			e, err := g.journal.Stored(Ref{Key: key})
			if err != nil || e.Reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || e.Reply.Shortened != (i < 2) {
				t.Errorf("%s: %v, %v", key, e, err)
			}
		}
		size := int64(0)
		files, _ := os.ReadDir(filepath.Join(p.state, "done"))
		for _, f := range files {
			info, _ := f.Info()
			size += info.Size()
		}
		if size > 200<<10 || len(files) != 4 {
			t.Errorf("%d files of %d bytes", len(files), size)
		}
		if err := g.close(); err != nil {
			t.Fatal(err)
		}
		g = newGuest(t, p, bound)
	}
}

// rewriteAsOneRecord stores the only entry as an older agent did.
func rewriteAsOneRecord(t *testing.T, g *guest, p testDirs) {
	t.Helper()
	e, err := g.journal.Stored(Ref{Key: "old"})
	if err != nil {
		t.Fatal(err)
	}
	e.Head, e.BootId, e.UptimeMs, e.Changes = false, "", 0, 0
	payload, err := proto.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	chain := frames.NewChain(e.Begin.TransactionId)
	err = os.WriteFile(filepath.Join(p.state, "done", e.Begin.TransactionId), chain.Append(nil, payload), 0o600)
	if err != nil {
		t.Fatal(err)
	}
}

// The index is read without the replies: a reply that is damaged is noticed when it is asked for, and costs no other.
func TestIndexHasNoReplies(t *testing.T) {
	p := newTestDirs(t)
	g := newGuest(t, p, nil)
	storeReply(t, g, "k", textReply(strings.Repeat("x", 1<<20)))
	file := filepath.Join(p.state, "done", g.journal.store.entries[0].id())
	if err := errors.Join(g.close(), os.Truncate(file, 500<<10)); err != nil {
		t.Fatal(err)
	}
	g = newGuest(t, p, nil)
	if list, _, err := g.journal.List("", 10, anyPort); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if e, err := g.journal.Stored(Ref{Key: "k"}); err != nil || !e.Reply.Shortened {
		t.Errorf("%v, %v", e, err)
	}
	if _, err := g.journal.Stored(Ref{Key: "other"}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// Whatever a script puts into whichever field, its reply can be sent and stored.
func TestLimitReply(t *testing.T) {
	reply := &pb.RunScriptResponse{}
	fill(reply.ProtoReflect())
	LimitReply(reply)
	if size := proto.Size(reply); size > 4<<20 {
		t.Errorf("%d bytes", size)
	}
	if reply.ChangesDropped == 0 || reply.LogDropped == 0 || len(reply.NotUndone) == 0 || len(reply.Log) == 0 {
		t.Errorf("%d changes and %d lines are dropped", reply.ChangesDropped, reply.LogDropped)
	}
	once := proto.CloneOf(reply)
	if LimitReply(reply); !proto.Equal(once, reply) {
		t.Error("cut again")
	}
	if size := proto.Size(shortReply(reply)); size > lastRecordReserve-frames.HeaderSize-1024 {
		t.Errorf("a short reply of %d bytes", size)
	}
}

// fill sets every text of a reply but the result, which the sandbox limits, to a long one, and every list to many.
func fill(m protoreflect.Message) {
	long := protoreflect.ValueOfString(strings.Repeat("ä", 20_000))
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		switch field := fields.Get(i); {
		case field.Name() == "result":
		case field.IsList():
			list := m.Mutable(field).List()
			for range 400 {
				fill(list.AppendMutable().Message())
			}
		case field.Message() != nil:
			fill(m.Mutable(field).Message())
		case field.Kind() == protoreflect.StringKind:
			m.Set(field, long)
		}
	}
}

// A page ends with the oldest that it lists, whether that has ended or not, so that the next one leaves none out.
func TestPagesLeaveNoneOut(t *testing.T) {
	g := newGuest(t, newTestDirs(t), nil)
	var ids []string
	for range 5 {
		tx := g.begin(t)
		ids = append(ids, tx.ID())
		mustDo(t, tx.Commit(t.Context(), committedReply()))
		mustDo(t, tx.Close(t.Context(), nil))
		if len(ids) == 2 {
			g.awaitCleaning(t)
			g.journal.mu.Lock()
			waiting := &Tx{begin: &pb.JournalBegin{TransactionId: g.journal.newID()}, phase: rollingBack}
			g.journal.mu.Unlock()
			g.journal.noteUnfinished(waiting, nil)
			ids = append(ids, waiting.ID())
		}
	}
	for _, token := range []string{"abc", "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz", "\xff"} {
		if _, _, err := g.journal.List(token, 10, anyPort); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("the token %q: %v", token, err)
		}
	}
	for _, n := range []int{1, 2, 4} {
		var listed []string
		for after := ""; ; {
			page, next, err := g.journal.List(after, n, anyPort)
			mustDo(t, err)
			for _, i := range page {
				listed = append([]string{i.TransactionId}, listed...)
			}
			if after = next; after == "" {
				break
			}
		}
		if !slices.Equal(listed, ids) {
			t.Errorf("pages of %d: %v, not %v", n, listed, ids)
		}
	}
}

// A log of several blocks that a loss of power left zeroed in part is not taken for that of an open transaction, whose reply is
// stored.
func TestLogIsZeroedInPart(t *testing.T) {
	for _, first := range []bool{true, false} {
		p := newTestDirs(t)
		mustPopulate(t, p)
		var dir string
		var log []byte
		g, err := openGuest(p, func(c *Config) {
			c.Step = func(name string) error {
				if name == "log.zero" && log == nil {
					log, _ = os.ReadFile(filepath.Join(dir, "journal"))
				}
				return nil
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		tx := g.begin(t)
		for i := range 80 {
			g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: fmt.Sprintf("/etc/%d", i), Content: largeContent('a')})
		}
		dir = tx.dir()
		if err := tx.Commit(t.Context(), committedReply()); err != nil {
			t.Fatal(err)
		}
		if err := tx.Close(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if err := g.close(); err != nil {
			t.Fatal(err)
		}
		used := len(bytes.TrimRight(log, "\x00"))
		if used < 8<<10 {
			t.Fatalf("the log has %d bytes", used)
		}
		if first {
			clear(log[:4096])
		} else {
			clear(log[used-used%4096:])
		}
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, "u"), 0o700), os.WriteFile(filepath.Join(dir, "journal"), log, 0o600)); err != nil {
			t.Fatal(err)
		}
		after := newGuest(t, p, nil)
		if list, err := after.journal.Recover(t.Context(), nil); err != nil || len(list) != 0 {
			t.Errorf("%+v, %v", list, err)
		}
		if _, err := os.Stat(filepath.Join(p.files, "etc/19")); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("the directory is still there")
		}
	}
}
