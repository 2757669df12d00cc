//go:build blocktest

package blocktest

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

var (
	full = flag.Bool("full", false, "every prefix also where the kernel writes back early, more subsets, and each variant on each file system")
	seed = flag.Uint64("seed", 0, "of the random subsets; 0: another one each time")
	keep = flag.String("keep", "", "a directory that the images of wrong states are put into")
	only = flag.String("variant", "", "the one variant to try")
)

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		if err := child(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	os.Exit(m.Run())
}

// recording is one run of the transactions: the device before, all writes, and what the process saw.
type recording struct {
	fileSystem
	dir     string
	before  *disk
	entries []entry
	durable []int
	workerResult
}

// record runs the transactions on a new file system.
func record(t *testing.T, s fileSystem, early bool, variant string) *recording {
	t.Helper()
	s.requireKernelSupport(t)
	dir := memoryDir(t)
	image, mnt, out := filepath.Join(dir, "image"), filepath.Join(dir, "mnt"), filepath.Join(dir, "out")
	must(t, os.Mkdir(mnt, 0o700))
	must(t, newDisk(s.size).writeTo(image))
	if said, err := exec.Command(s.mkfs[0], append(s.mkfs[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", s.mkfs, err, said)
	}
	s.whileMounted(t, image, mnt, func() {
		must(t, errors.Join(os.Mkdir(files(mnt), 0o755), os.Mkdir(state(mnt), 0o755), populate(files(mnt))))
	})
	r := &recording{fileSystem: s, dir: dir}
	var err error
	if r.before, err = readDisk(image); err != nil {
		t.Fatal(err)
	}
	log := startLogging(t, dir, image)
	last := 0
	s.whileMounted(t, log.device, mnt, func() {
		order, err := json.Marshal(workerConfig{Dir: mnt, Log: log.log, Out: out, EarlyWriteback: early, Variant: variant})
		must(t, err)
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childEnv+"="+string(order))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("the transactions: %v\n%s", err, said)
		}
		last, err = countEntries(log.log)
		must(t, err)
	})
	log.stop(t)
	data, err := os.ReadFile(log.log)
	must(t, err)
	if r.entries, err = parseLog(data); err != nil {
		t.Fatal(err)
	}
	r.entries = r.entries[:last] // the rest is the unmount
	r.durable = durablePrefixes(r.entries)
	data, err = os.ReadFile(out)
	must(t, err)
	must(t, json.Unmarshal(data, &r.workerResult))
	must(t, errors.Join(os.Remove(image), os.Remove(log.log)))
	return r
}

// whileMounted calls do while an image is mounted.
func (s fileSystem) whileMounted(t *testing.T, image, at string, do func()) {
	t.Helper()
	unmount, err := s.mount(image, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unmount() }) // where do ends the test
	do()
	must(t, unmount())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// crashState is a state that a power loss leaves: that after a number of writes, of which some may be lost.
type crashState struct {
	entries int
	subset  string
	disk    *disk
}

// crashStates returns an iterator over the states to try.
func (r *recording) crashStates(every bool, subsets int, random *rand.Rand) func(yield func(crashState) bool) {
	return func(yield func(crashState) bool) {
		now := r.before.clone()
		durable := r.before.clone()
		seen := map[uint64]bool{}
		fresh := func(m crashState) bool { // one disk is tried once for each number of acknowledgements
			key := m.disk.sum ^ uint64(r.acked(m.entries))
			if seen[key] {
				return false
			}
			seen[key] = true
			return true
		}
		at := 0
		for n := 0; n <= len(r.entries); n++ {
			for at < r.durable[n] {
				durable.apply(r.entries[at])
				at++
			}
			ends := n == len(r.entries) || r.entries[n].flush
			starts := n > 0 && r.entries[n-1].flush
			if m := (crashState{entries: n, disk: now}); (every || ends || starts) && fresh(m) && !yield(m) {
				return
			}
			for k := 0; ends && k < subsets; k++ {
				m := r.subset(n, durable, random)
				if fresh(m) && !yield(m) {
					return
				}
			}
			if n < len(r.entries) {
				now.apply(r.entries[n])
			}
		}
	}
}

// subset returns the state with what is durable after n entries and a random part of the rest.
func (r *recording) subset(n int, durable *disk, random *rand.Rand) crashState {
	d := durable.clone()
	likely, kept, all := random.Float64(), 0, 0
	for _, e := range r.entries[r.durable[n]:n] {
		for _, p := range e.pieces() {
			all++
			if e.durable || random.Float64() < likely {
				kept++
				d.apply(p)
			}
		}
	}
	return crashState{n, fmt.Sprintf(", of which %d of the last %d blocks", kept, all), d}
}

// acked returns how many transactions were acknowledged after n writes.
func (r *recording) acked(n int) int {
	count := 0
	for _, a := range r.Acks {
		if a.Entries <= n {
			count++
		}
	}
	return count
}

// place is where one state is tried: an image, and where it is mounted.
type place struct{ image, mnt string }

// places makes as many places as states are tried at once. Most of a trial is waiting for the kernel, not computing.
func (r *recording) places() (chan place, error) {
	n := 2 * runtime.GOMAXPROCS(0)
	list := make(chan place, n)
	for i := range n {
		p := place{filepath.Join(r.dir, fmt.Sprintf("state-%d", i)), filepath.Join(r.dir, fmt.Sprintf("mnt-%d", i))}
		if err := os.MkdirAll(p.mnt, 0o700); err != nil {
			return nil, err
		}
		list <- p
	}
	return list, nil
}

// check lets the file system and the journal recover from the image in a place, and returns what is wrong then.
func (r *recording) check(p place, acked int) (wrong error) {
	defer os.Remove(p.image)
	unmount, err := r.mount(p.image, p.mnt)
	if err != nil {
		return err
	}
	defer func() { wrong = errors.Join(wrong, unmount()) }()
	g, err := start(p.mnt, nil)
	if err != nil {
		return err
	}
	defer func() { wrong = errors.Join(wrong, g.close()) }()
	return errors.Join(runRecovery(g), r.compare(g, acked))
}

func runRecovery(g *guest) error {
	list, err := g.journal.Recover(context.Background(), nil)
	for _, one := range list {
		err = errors.Join(err, one.Err, one.Report.Err)
		for _, u := range one.Report.Steps {
			if u.Err != nil || u.Conflict != "" {
				err = errors.Join(err, fmt.Errorf("taking back %s %s (conflict %q): %v", u.Op, u.Target, u.Conflict, u.Err))
			}
		}
	}
	for _, dir := range []string{"open", "kept"} {
		left, readErr := os.ReadDir(filepath.Join(state(g.dir), "tx", dir))
		if len(left) > 0 {
			readErr = fmt.Errorf("the directory %s holds %v", dir, left)
		}
		err = errors.Join(err, readErr)
	}
	return err
}

// compare compares what is there with what the process saw.
func (r *recording) compare(g *guest, acked int) error {
	now, err := describeTree(files(g.dir))
	if err != nil {
		return err
	}
	next := min(acked+1, len(r.Acks))
	was, is := differences(r.Pictures[acked], now), differences(r.Pictures[next], now)
	if was != "" && is != "" {
		err = fmt.Errorf("after %d transactions, of which the last was acknowledged:\n%s", acked, was)
		if next > acked {
			err = fmt.Errorf("neither as before nor as after %q.\nNot as before:\n%s\nNot as after:\n%s", transactions[acked].key, was, is)
		}
		return err
	}
	for _, a := range r.Acks[:acked] {
		entry, e := g.journal.Stored(journal.Ref{Key: a.Key})
		if e != nil {
			err = errors.Join(err, fmt.Errorf("the reply of %q, which was acknowledged: %w", a.Key, e))
		} else if entry.Reply.Status != a.Status {
			err = errors.Join(err, fmt.Errorf("the reply of %q is %s", a.Key, entry.Reply.Status))
		}
	}
	if next == acked {
		return err
	}
	return errors.Join(err, checkReply(g, r.Acks[acked], was == "", is == ""))
}

// checkReply compares the stored reply of the unacknowledged transaction with what is there.
func checkReply(g *guest, a ack, before, after bool) error {
	entry, err := g.journal.Stored(journal.Ref{Key: a.Key})
	switch {
	case errors.Is(err, fs.ErrNotExist) && before:
		return nil
	case err != nil:
		return fmt.Errorf("the reply of %q: %w", a.Key, err)
	case before && entry.Reply.Status == pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, after && entry.Reply.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED:
		return nil
	}
	return fmt.Errorf("the reply of %q is %s, and all is as before: %v, as after: %v", a.Key, entry.Reply.Status, before, after)
}

// result counts the states of a recording.
type result struct {
	states, violations int
	kinds              map[string]int // violations by what is wrong
}

var varyingText = regexp.MustCompile(`[0-9a-f]{32}|\d+`)

// errorClass returns the first line of an error without ids and numbers.
func errorClass(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return varyingText.ReplaceAllString(line, "#")
}

// checkStates checks the states of a recording, several at once, and reports the first violation of each class; stop: it
// ends at the first.
func (r *recording) checkStates(t *testing.T, stop, every bool, subsets int) result {
	t.Helper()
	sum := result{kinds: map[string]int{}}
	places, err := r.places()
	must(t, err)
	var mu sync.Mutex // of sum
	var tried sync.WaitGroup
	defer tried.Wait() // also where the test ends early: what is mounted must be unmounted first
	for m := range r.crashStates(every, subsets, rand.New(rand.NewPCG(*seed, 1))) {
		at := <-places
		mu.Lock()
		enough := stop && sum.violations > 0
		mu.Unlock()
		if enough {
			break
		}
		must(t, m.disk.writeTo(at.image))
		sum.states++
		copied := ""
		if *keep != "" {
			copied = filepath.Join(*keep, fmt.Sprintf("%s-%d-%d", r.kind, m.entries, sum.states))
			must(t, m.disk.writeTo(copied))
		}
		tried.Go(func() {
			err := r.check(at, r.acked(m.entries))
			places <- at
			if copied != "" && err == nil {
				_ = os.Remove(copied)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				r.report(t, &sum, m, err, stop)
			}
		})
	}
	tried.Wait()
	return sum
}

// report counts and tells a violation; expected: it is not an error.
func (r *recording) report(t *testing.T, sum *result, m crashState, err error, expected bool) {
	t.Helper()
	class := errorClass(err)
	sum.violations++
	sum.kinds[class]++
	if sum.kinds[class] > 1 {
		return
	}
	text := fmt.Sprintf("after %d of %d writes%s, with %s acknowledged: %v",
		m.entries, len(r.entries), m.subset, r.lastAcked(m.entries), err)
	if expected {
		t.Log(text)
	} else {
		t.Error(text)
	}
}

// lastAcked names the last transaction that was acknowledged after n writes.
func (r *recording) lastAcked(n int) string {
	if acked := r.acked(n); acked > 0 {
		return fmt.Sprintf("%q", transactions[acked-1].key)
	}
	return "nothing"
}

// Every state that a power loss leaves recovers to before or after a transaction, and no acknowledged one is lost.
func TestPowerLoss(t *testing.T) {
	requireTools(t)
	t.Logf("seed %d", *seed)
	table := []string{fmt.Sprintf("%-16s %-6s %7s %7s %7s %10s %8s", "file system", "kernel", "writes", "flushes", "states", "violations", "time")}
	for _, s := range fileSystems {
		for _, early := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%s", s.name, writebackName(early)), func(t *testing.T) {
				begun := time.Now()
				r := record(t, s, early, "")
				sum := r.checkStates(t, false, *full || !early, subsetCount())
				for what, n := range sum.kinds {
					t.Logf("%d times: %s", n, what)
				}
				flushes := 0
				for _, e := range r.entries {
					if e.flush {
						flushes++
					}
				}
				if sum.states < 50 || flushes < 20 || len(r.Acks) != len(transactions) {
					t.Errorf("only %d states, %d flushes, %d transactions", sum.states, flushes, len(r.Acks))
				}
				table = append(table, fmt.Sprintf("%-16s %-6s %7d %7d %7d %10d %8s", s.name, writebackName(early), len(r.entries), flushes, sum.states, sum.violations, time.Since(begun).Round(time.Second/10)))
			})
		}
	}
	t.Log("\n" + strings.Join(table, "\n"))
}

// writebackName names when the kernel writes back: as late as it can, or at once.
func writebackName(early bool) string {
	if early {
		return "early"
	}
	return "late"
}

func subsetCount() int {
	if *full {
		return 8
	}
	return 2
}
