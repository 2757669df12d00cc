package file

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// leftovers remembers, beyond the end of this process, in which directories uploads were staged: what an agent left there that
// was killed is removed when the next one starts. The file has one quoted path a line.
//
//	an upload into a directory ► a line, once ─── the agent dies ───► the next one: reads the lines, removes the file, sweeps
type leftovers struct {
	file  string                           // empty: nothing is remembered
	enter func() (leave func(), err error) // begins a write of the file, or says that it cannot be now; nil: it always can

	mu    sync.Mutex
	noted map[string]bool

	sweeping sync.Mutex
	swept    map[string]time.Time // when what is left in a directory was looked for last
}

// sweepEvery is how often a directory is looked through. That takes the longer the more is in it, and uploads into one come
// in a row.
const sweepEvery = time.Minute

// due reports whether a directory is to be looked through, and takes it for done.
func (l *leftovers) due(dir string) bool {
	l.sweeping.Lock()
	defer l.sweeping.Unlock()
	if at, ok := l.swept[dir]; ok && time.Since(at) < sweepEvery {
		return false
	}
	if l.swept == nil || len(l.swept) >= maxNoted {
		l.swept = map[string]time.Time{}
	}
	l.swept[dir] = time.Now()
	return true
}

// Bounds of the file: paths of its directories, and bytes that are read of it.
const (
	maxNoted     = 4096
	maxNotedRead = 4 << 20
)

// noteTime bounds what an upload waits for the note: the disk of the file may hang, or be frozen, and that of the upload not.
const noteTime = 100 * time.Millisecond

// note remembers a directory before an upload is staged there. A failure is no reason to refuse a file: without the line the
// next upload into the directory removes what was left.
func (l *leftovers) note(dir string) {
	if l.file == "" || !l.mu.TryLock() {
		return
	}
	if l.noted[dir] {
		l.mu.Unlock()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer l.mu.Unlock()
		if l.write(dir) == nil {
			l.noted[dir] = true
		}
	}()
	select {
	case <-done:
	case <-time.After(noteTime):
	}
}

// write adds a line to the file. The caller holds mu.
func (l *leftovers) write(dir string) error {
	if l.enter != nil {
		leave, err := l.enter()
		if err != nil {
			return err
		}
		defer leave()
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if len(l.noted) >= maxNoted {
		l.noted, flags = nil, flags|os.O_TRUNC // the oldest are forgotten
	}
	if l.noted == nil {
		l.noted = map[string]bool{}
	}
	file, err := os.OpenFile(l.file, flags, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(strconv.Quote(dir) + "\n")
	return errors.Join(err, file.Close())
}

// take returns the directories that an earlier process has noted, and forgets them.
func (l *leftovers) take() (dirs []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == "" {
		return nil
	}
	file, err := os.Open(l.file)
	if err != nil {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(file, maxNotedRead)) // what can be read of it
	_ = file.Close()
	if err := os.Remove(l.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if dir, err := strconv.Unquote(strings.TrimSuffix(line, "\n")); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// sweepLeftovers removes what uploads of earlier processes left. What is being uploaded is locked, and stays.
func (r *Room) sweepLeftovers(dirs []string) {
	for _, dir := range dirs {
		at, err := r.guest.Files.At(fsys.Join(dir, "any name"))
		if err != nil {
			continue // it is gone, or cannot be reached: the next upload there removes what was left
		}
		_, _ = at.Sweep()
		_ = at.Close()
	}
}
