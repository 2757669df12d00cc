package journal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Whatever calls a transaction makes, in whatever order, some of them failing, and however it ends: all is as after the
// calls that succeeded, or all is as before.
func TestRandom(t *testing.T) {
	rounds := 150
	if *sweep == "full" {
		rounds = 5000
	}
	seed := uint64(time.Now().UnixNano())
	sample := newSample()
	for i := range uint64(rounds) {
		if sample.exhausted() {
			break
		}
		random := rand.New(rand.NewPCG(seed, i))
		calls, ending := randomCalls(random), random.IntN(3)
		if err := checkAtomic(t, calls, ending); err != nil {
			calls, err = shrink(t, calls, ending, err)
			t.Fatalf("seed %d, %d:\n%s\nends by %s:\n%v", seed, i, describe(calls), endings[ending], err)
		}
	}
}

var endings = []string{"commit", "rollback", "death and recovery"}

func describe(calls []call) string {
	var b strings.Builder
	for _, c := range calls {
		fmt.Fprintf(&b, "%s %s\n", c.op, prototext.MarshalOptions{}.Format(c.in))
	}
	return b.String()
}

func randomCalls(random *rand.Rand) []call {
	paths := []string{
		"/etc/small", "/etc/large", "/etc/two", "/etc/link", "/etc/empty", "/etc/app.d", "/etc/app.d/one", "/etc/app.d/fifo",
		"/etc/app.d/deep", "/etc/app.d/deep/er/file", "/etc/new", "/etc/new/a", "/etc/new/b/c", "/etc/other", "/etc/app.d/also-two",
	}
	path := func() string { return paths[random.IntN(len(paths))] }
	content := func() []byte {
		return append(largeContent('r')[:[]int{0, 5, 100, maxInlineFile + 1, 3 * maxInlineFile}[random.IntN(5)]], byte(random.IntN(256)))
	}
	var calls []call
	for range 1 + random.IntN(12) {
		flag, other := random.IntN(2) == 0, random.IntN(2) == 0
		switch random.IntN(10) {
		case 0, 1:
			calls = append(calls, call{"file.write", &pb.WriteFileArgs{Path: path(), Content: content(), Parents: flag, Inplace: other, Mode: []string{"", "0600"}[random.IntN(2)]}})
		case 2:
			calls = append(calls, call{"file.append", &pb.WriteFileArgs{Path: path(), Content: content(), Inplace: flag, Backup: other}})
		case 3, 4:
			calls = append(calls, call{"file.remove", &pb.RemoveArgs{Path: path(), Recursive: true}})
		case 5:
			calls = append(calls, call{"file.mkdir", &pb.MkdirArgs{Path: path(), Parents: flag}})
		case 6:
			calls = append(calls, call{"file.symlink", &pb.SymlinkArgs{Path: path(), Target: "small"}})
		case 7:
			calls = append(calls, call{"file.chmod", &pb.ChmodArgs{Path: path(), Mode: []string{"0700", "0755"}[random.IntN(2)]}})
		case 8:
			calls = append(calls, call{"file.copy", &pb.FromToArgs{From: path(), To: path()}})
		case 9:
			calls = append(calls, call{"file.move", &pb.FromToArgs{From: path(), To: path()}})
		}
	}
	return calls
}

// checkAtomic runs a transaction of some calls and returns how it was not atomic; nil if it was.
func checkAtomic(t *testing.T, calls []call, ending int) error {
	p := newMemoryDirs(t)
	defer os.RemoveAll(filepath.Dir(p.files))
	before, err := describeTree(p.files)
	if err != nil {
		return err
	}
	g, err := openGuest(p, nil)
	if err != nil {
		return err
	}
	defer func() { _ = g.close() }()
	ctx := context.Background()
	tx, err := g.journal.Begin(ctx, Header{Key: "k"})
	if err != nil {
		return err
	}
	for i, c := range calls {
		then, err := describeTree(p.files)
		if err != nil {
			return err
		}
		if g.call(ctx, tx, c.op, c.in) == nil {
			continue
		}
		if err := tx.Err(); err != nil {
			return fmt.Errorf("call %d: %w", i+1, err)
		}
		now, err := describeTree(p.files)
		if err != nil {
			return err
		}
		if d := differences(then, now); d != "" {
			return fmt.Errorf("call %d failed, and not all is as before it:\n%s", i+1, d)
		}
	}
	after, err := describeTree(p.files)
	if err != nil {
		return err
	}
	want := before
	switch ending {
	case 0:
		want = after
		err = errors.Join(tx.Commit(ctx, committedReply()), tx.Close(ctx, nil))
	case 1:
		if report := tx.Rollback(ctx); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(report.Conflicts()) > 0 {
			err = fmt.Errorf("%+v", report)
		}
		err = errors.Join(err, tx.Close(ctx, nil))
	case 2:
		if err = g.close(); err != nil {
			return err
		}
		if g, err = openGuest(p, nil); err != nil {
			return err
		}
		list, e := g.journal.Recover(ctx, nil)
		err = e
		for _, r := range list {
			if r.Report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || len(r.Report.Conflicts()) > 0 || r.Err != nil {
				err = errors.Join(err, fmt.Errorf("%+v", r))
			}
		}
	}
	if err != nil {
		return err
	}
	now, err := describeTree(p.files)
	if err != nil {
		return err
	}
	if d := differences(want, now); d != "" {
		return errors.New(d)
	}
	return nil
}

// shrink removes calls as long as checkAtomic still fails.
func shrink(t *testing.T, calls []call, ending int, why error) ([]call, error) {
	for i := 0; i < len(calls); {
		fewer := append(append([]call{}, calls[:i]...), calls[i+1:]...)
		if err := checkAtomic(t, fewer, ending); err != nil {
			calls, why, i = fewer, err, 0
		} else {
			i++
		}
	}
	return calls, why
}
