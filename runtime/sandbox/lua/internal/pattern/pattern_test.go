package pattern

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// referenceMatcher follows the manual word by word: at each item it tries all possibilities, by recursion. It shares neither
// choices nor recorded failures with the real one, which can be wrong in them.
type referenceMatcher struct {
	p          *Pattern
	text       string
	start, end [MaxCaptures]int
	budget     int
}

func (s *referenceMatcher) at(i, at int) (int, error) {
	if s.budget--; s.budget < 0 {
		return 0, errBudget
	}
	if i == len(s.p.items) {
		return at, nil
	}
	it := &s.p.items[i]
	fits := at < len(s.text) && (it.op == opByte && s.text[at] == it.a || it.op != opByte && it.set.has(s.text[at]))
	switch it.op {
	case opByte, opSet:
		if !fits {
			return -1, nil
		}
		return s.at(i+1, at+1)
	case opStar, opOptional, opLazy:
		return s.repeat(i, at, fits)
	case opOpen, opPosition:
		old := s.start[it.n]
		s.start[it.n] = at
		end, err := s.at(i+1, at)
		if end < 0 {
			s.start[it.n] = old
		}
		return end, err
	case opClose:
		old := s.end[it.n]
		s.end[it.n] = at
		end, err := s.at(i+1, at)
		if end < 0 {
			s.end[it.n] = old
		}
		return end, err
	case opError:
		return 0, it.err
	}
	m := &Matcher{p: s.p, text: s.text, start: s.start, end: s.end}
	if at, ok := m.matchRare(it, at); ok {
		return s.at(i+1, at)
	}
	return -1, nil
}

// repeat tries one repetition more, and the next item: which first depends on the item.
func (s *referenceMatcher) repeat(i, at int, fits bool) (int, error) {
	more := func() (int, error) {
		switch {
		case !fits:
			return -1, nil
		case s.p.items[i].op == opOptional:
			return s.at(i+1, at+1)
		}
		return s.at(i, at+1)
	}
	on := func() (int, error) { return s.at(i+1, at) }
	first, second := more, on
	if s.p.items[i].op == opLazy {
		first, second = on, more
	}
	if end, err := first(); end >= 0 || err != nil {
		return end, err
	}
	return second()
}

var errBudget = errors.New("too slow")

// compare compares the matcher with the reference at each offset of the text, also with failures recorded from the first step
// on.
func compare(t *testing.T, source, text string) {
	t.Helper()
	p := Compile(source, false)
	for _, keep := range []bool{false, true} {
		m := New(p, text)
		if keep && !p.hasBackref {
			m.recording, m.failed = true, make([]uint64, p.repeats*(len(text)+1)/64+1)
		}
		for at := 0; at <= len(text); at++ {
			s := &referenceMatcher{p: p, text: text, budget: 200_000}
			want, wantErr := s.at(0, at)
			if errors.Is(wantErr, errBudget) {
				return
			}
			got, err := m.match(at)
			if got != want || err != wantErr {
				t.Fatalf("%q in %q from %d, noting %v: %d, %v, want %d, %v", source, text, at, keep, got, err, want, wantErr)
			}
			if got >= 0 && err == nil && (m.start != s.start || m.end != s.end) && p.captures > 0 {
				compareCaptures(t, p, m, s)
			}
		}
	}
}

func compareCaptures(t *testing.T, p *Pattern, m *Matcher, s *referenceMatcher) {
	t.Helper()
	for i := range p.captures {
		if m.start[i] != s.start[i] || !p.position[i] && !p.open[i] && m.end[i] != s.end[i] {
			t.Fatalf("capture %d in %q is %d…%d, want %d…%d", i, m.text, m.start[i], m.end[i], s.start[i], s.end[i])
		}
	}
}

var patternParts = []string{"a", "b", ".", "[ab]", "[^a]", "%w", "a*", "b*", ".*", ".-", "a-", "a?", "b?", ".?", "[ab]*", "[ab]-", "a+", "(", ")", "()", "%1", "%b()", "%f[a]", "$", "(a*)", "(.-)"}

func TestAgainstReference(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 4000 {
		var source, text strings.Builder
		for range r.IntN(7) {
			source.WriteString(patternParts[r.IntN(len(patternParts))])
		}
		for range r.IntN(14) {
			text.WriteByte("aaabbc()"[r.IntN(8)])
		}
		compare(t, source.String(), text.String())
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("^(a*)%1b-$", "aaaab")
	f.Add("%f[%w]%w+", "a bc")
	f.Fuzz(func(t *testing.T, source, text string) {
		if len(source) < 40 && len(text) < 40 {
			compare(t, source, text)
		}
	})
}

// TestSteps: patterns that take plain backtracking years, or the square of the text, take steps in proportion to it.
func TestSteps(t *testing.T) {
	long := strings.Repeat("a", 1<<20)
	for _, c := range []struct{ source, text string }{
		{".-b", long}, {".*b", long}, {"a-b", long}, {"(.-)(.-)(.-)b", long[:1<<17]}, {".*.*.*.*b", long[:1<<17]},
		{strings.Repeat("a?", 40) + strings.Repeat("a", 40) + "b", long[:1<<16]}, {"a*a*a*a*a*a*$b", long[:1<<16]}, {"%w+@", long},
	} {
		began, calls := time.Now(), 0
		m := New(Compile(c.source, false), c.text)
		m.Check = func() error { calls++; return nil }
		if found, err := m.Find(0); found || err != nil {
			t.Errorf("%s is found, %v", c.source, err)
		}
		// Steps, not time: machines differ.
		if limit := 60 * len(c.text) * (m.p.repeats + 1) / checkEvery; calls > limit+2 {
			t.Errorf("%s takes %d steps for %d bytes", c.source, calls*checkEvery, len(c.text))
		}
		t.Logf("%.20s in %d bytes: %d checks, %v", c.source, len(c.text), calls, time.Since(began))
	}
}

// TestCheckEndsASearch: with a back reference a search tries everything.
func TestCheckEndsASearch(t *testing.T) {
	stop := errors.New("enough")
	calls := 0
	m := New(Compile("(a*)(a*)(a*)(a*)(a*)%1%2%3%4%5b", false), strings.Repeat("a", 400))
	m.Check = func() error {
		if calls++; calls > 3 {
			return stop
		}
		return nil
	}
	if _, err := m.Find(0); err != stop {
		t.Errorf("the search ends with %v", err)
	}
}
