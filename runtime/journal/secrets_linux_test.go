package journal

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const secret = "s3cr3t-of-the-request"

// beginSecret begins a transaction of a request with a secret.
func (g *guest) beginSecret(t *testing.T) *Tx {
	t.Helper()
	tx, err := g.journal.Begin(t.Context(), Header{MessageID: "m", Key: "k",
		Hide: func(s string) string { return strings.ReplaceAll(s, secret, "[secret]") }})
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// checkTold checks that neither a recovered transaction nor what is stored of it has the secret, and returns what is told.
func checkTold(t *testing.T, p testDirs, list []Recovered, err error) string {
	t.Helper()
	if err != nil || len(list) != 1 || list[0].Entry == nil {
		t.Fatalf("%+v, %v", list, err)
	}
	told := prototext.Format(list[0].Entry) + list[0].Report.Hint()
	if list[0].Report.Err != nil {
		told += list[0].Report.Err.Error()
	}
	if strings.Contains(told, secret) {
		t.Errorf("told: %s", told)
	}
	err = filepath.WalkDir(filepath.Join(p.state, "done"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(secret)) {
			t.Errorf("%s has it", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return told
}

// What an agent that died leaves of a request with secrets is taken back by one that does not know them, which tells and stores
// none: neither of paths, nor of what is in their place, nor of what cannot be taken back.
func TestRecoveryTellsNoSecretsOfPaths(t *testing.T) {
	p := newMemoryDirs(t)
	at := func(name string) string { return filepath.Join(p.files, "etc", name) }
	taken := "taken-" + secret
	err := errors.Join(os.WriteFile(at(taken), []byte("taken"), 0o644), os.WriteFile(at("old-"+secret), []byte("old"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	g, err := openGuest(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	tx := g.beginSecret(t)
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/old-" + secret, Content: []byte("ours")})
	g.mustCall(t, tx, "file.mkdir", &pb.MkdirArgs{Path: "/etc/" + secret})
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/" + secret + "/plain", Content: []byte("ours")})
	g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: "/etc/" + taken})
	err = errors.Join(tx.Irreversible(t.Context(), &pb.Change{Op: "exec.run", Target: "mail " + secret, Action: "ran"}),
		os.WriteFile(at("old-"+secret), []byte("theirs, longer"), 0o644), g.close())
	if err != nil {
		t.Fatal(err)
	}
	g = newGuest(t, p, func(c *Config) {
		c.Step = func(step string) error {
			if step == "restore.remove" {
				return errors.New("the disk says no to " + at(secret))
			}
			return nil
		}
	})
	list, err := g.journal.Recover(t.Context(), nil)
	told := checkTold(t, p, list, err)
	for _, want := range []string{"/etc/old-[secret].quantix-conflict-", "/etc/[secret]/plain", "/etc/taken-[secret]", "mail [secret]", "the disk says no"} {
		if !strings.Contains(told, want) {
			t.Errorf("%q is not told: %s", want, told)
		}
	}
	for name, want := range map[string]string{"old-" + secret: "old", taken: "taken", secret + "/plain": "ours"} {
		if data, _ := os.ReadFile(at(name)); string(data) != want {
			t.Errorf("%s is %q", name, data)
		}
	}
}

// Actions after a commit are told without secrets, also by the agent that repeats them; one that an older agent recorded has no
// target.
func TestRecoveryTellsNoSecretsOfActions(t *testing.T) {
	p := newTestDirs(t)
	run := func(c *Config) {
		c.Run = func(_ context.Context, op string, args proto.Message) (bool, error) {
			if args.(*pb.PathArgs).Path != secret {
				t.Errorf("ran with %v", args)
			}
			return false, nil
		}
	}
	g, err := openGuest(p, run)
	if err != nil {
		t.Fatal(err)
	}
	tx := g.beginSecret(t)
	action := Action{Op: "do", Args: &pb.PathArgs{Path: secret}, Target: "do it with " + secret}
	if err := tx.Commit(t.Context(), committedReply(), action); err != nil {
		t.Fatal(err)
	}
	if done := tx.After(t.Context()); len(done) != 1 || done[0].Target != "do it with [secret]" {
		t.Errorf("%v", done)
	}
	if err := g.close(); err != nil {
		t.Fatal(err)
	}
	g = newGuest(t, p, run)
	list, err := g.journal.Recover(t.Context(), nil)
	if told := checkTold(t, p, list, err); !strings.Contains(told, "do it with [secret]") {
		t.Error(told)
	}
	old := &Tx{journal: g.journal, begin: &pb.JournalBegin{Secrets: true}, phase: committed}
	if old.actions, err = (&Tx{begin: &pb.JournalBegin{}}).toActions([]Action{action}); err != nil {
		t.Fatal(err)
	}
	if done := old.After(t.Context()); len(done) != 1 || strings.Contains(done[0].Target, secret) {
		t.Errorf("of an older agent: %v", done)
	}
}

// Where an agent died before it could look what a command with secrets had made beside what it declared, the directory is told.
func TestRecoveryTellsNoSecretsBeside(t *testing.T) {
	p := newMemoryDirs(t)
	g, err := openGuest(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	tx := g.beginSecret(t)
	if _, err := tx.BeforeTouch(t.Context(), "/etc/small"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(p.files, "etc", secret), nil, 0o644), g.close()); err != nil {
		t.Fatal(err)
	}
	g = newGuest(t, p, nil)
	list, err := g.journal.Recover(t.Context(), nil)
	if told := checkTold(t, p, list, err); !strings.Contains(told, `target:`) || list[0].Entry.Reply.NotUndone[0].Target != "/etc" {
		t.Error(told)
	}
}

// Where more names have secrets than are held, no text of the journal's is told.
func TestManyNamesWithSecrets(t *testing.T) {
	names := toldNames{}
	for i := range maxToldNames + 10 {
		path := "/d/" + secret + strings.Repeat("x", i)
		names.add(&pb.JournalRecord{Record: &pb.JournalRecord_Take{Take: &pb.JournalTake{Path: path, Told: "/d/[secret]" + strings.Repeat("x", i)}}})
	}
	names.ready()
	if told := names.hide("/d/" + secret + "x"); told != untold {
		t.Error(told)
	}
}
