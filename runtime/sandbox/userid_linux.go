package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// idRange are user ids, first and last included.
type idRange struct{ first, last uint32 }

// freeIDs are the ids that runners get, best first. The first range is in nobody's use: it is above what systemd,
// containers and directory services (sssd up to 2000200000) give away, and below the ids that systemd keeps for foreign
// images. The second one is for an agent in a user namespace that has only 16 bits of ids: there it is systemd's for
// dynamic users.
var freeIDs = []idRange{{2013265920, 2146435071}, {61184, 65519}}

// freeUserID returns a user and group id that no account, no subordinate range and no process has. Each runner gets
// another one, so that only root may send it a signal, and a limit on processes counts no other's.
func freeUserID() (uint32, error) {
	mapped := intersect(freeIDs, readIDMap("/proc/self/uid_map"))
	mapped = intersect(mapped, readIDMap("/proc/self/gid_map"))
	if len(mapped) == 0 {
		return 0, errors.New("the agent's user namespace has no free user id")
	}
	taken := lately.ids()
	const tries = 100
	for range tries {
		r := mapped[0]
		id := r.first + rand.Uint32N(r.last-r.first+1)
		if !contains(taken, id) && !hasProcesses(id) {
			return id, nil
		}
	}
	return 0, errors.New("no user id is free")
}

// readIDMap returns the ids that exist in this user namespace, by user_namespaces(7); without the file there is no
// namespace.
func readIDMap(path string) []idRange {
	text, err := os.ReadFile(path)
	if err != nil {
		return freeIDs
	}
	var list []idRange
	for line := range strings.Lines(string(text)) {
		var first, outside, count uint32
		if n, _ := fmt.Sscan(line, &first, &outside, &count); n == 3 && count > 0 {
			list = append(list, idRange{first, first + count - 1})
		}
	}
	return list
}

// intersect returns the parts of ranges that are also in others, in the order of ranges.
func intersect(ranges, others []idRange) []idRange {
	var list []idRange
	for _, r := range ranges {
		for _, o := range others {
			if both := (idRange{max(r.first, o.first), min(r.last, o.last)}); both.first <= both.last {
				list = append(list, both)
			}
		}
	}
	return list
}

// lately keeps what takenIDs has returned for takenFor, since it looks at each process of the machine. Those that were started
// meanwhile is found by hasProcesses.
var lately takenLately

type takenLately struct {
	sync.Mutex
	taken []idRange
	at    time.Time
}

const takenFor = 10 * time.Second

func (l *takenLately) ids() []idRange {
	l.Lock()
	defer l.Unlock()
	if l.taken == nil || time.Since(l.at) >= takenFor {
		l.taken, l.at = takenIDs(), time.Now()
	}
	return l.taken
}

// hasProcesses reports whether a process has the id as its real user id, which the kernel knows without a search. Where it may
// not be asked, all processes are looked at.
func hasProcesses(id uint32) bool {
	switch _, err := unix.Getpriority(unix.PRIO_USER, int(id)); err {
	case nil:
		return true
	case unix.ESRCH:
		return false
	}
	return contains(processIDs(), id)
}

// takenIDs returns the ids that local accounts, groups, subordinate ranges and processes have.
func takenIDs() []idRange {
	var list []idRange
	eachLine := func(file string, id, count int) {
		f, err := os.Open(file)
		if err != nil {
			return // there are none of these
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			fields := strings.Split(s.Text(), ":")
			if len(fields) <= max(id, count) {
				continue
			}
			first, err := strconv.ParseUint(fields[id], 10, 32)
			n, countErr := uint64(1), error(nil)
			if count > 0 {
				n, countErr = strconv.ParseUint(fields[count], 10, 32)
			}
			if err == nil && countErr == nil && n > 0 {
				list = append(list, idRange{uint32(first), uint32(min(first+n-1, 1<<32-1))})
			}
		}
	}
	eachLine("/etc/passwd", 2, 0)
	eachLine("/etc/group", 2, 0)
	eachLine("/etc/subuid", 1, 2)
	eachLine("/etc/subgid", 1, 2)
	return append(list, processIDs()...)
}

// processIDs returns the ids that processes have.
func processIDs() (list []idRange) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // those that can be read
	for _, name := range names {
		var stat unix.Stat_t
		if name[0] >= '0' && name[0] <= '9' && unix.Fstatat(int(dir.Fd()), name, &stat, 0) == nil {
			list = append(list, idRange{stat.Uid, stat.Uid}, idRange{stat.Gid, stat.Gid})
		}
	}
	return list
}

func contains(ranges []idRange, id uint32) bool {
	for _, r := range ranges {
		if r.first <= id && id <= r.last {
			return true
		}
	}
	return false
}
