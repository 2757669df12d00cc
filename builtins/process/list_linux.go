package process

import (
	"bytes"
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// canList reports whether processes can be read here.
func canList() bool {
	fs, err := openProc(procDir)
	if err != nil {
		return false
	}
	defer fs.close()
	return len(fs.read("self/stat")) > 0
}

// readAll reads the processes that are asked for. One that ends meanwhile is left out.
func (r *Room) readAll(
	ctx context.Context, fs *procfs, in *pb.ListProcessesRequest, by order,
) ([]*pb.ProcessInfo, error) {
	which := &r.processes
	if in.IncludeThreads {
		which = &r.threads
	}
	before, now, err := which.take(ctx, fs)
	if err != nil {
		return nil, err
	}
	list := sortAndCut(fs.entries(before, now, in.Filter), by, in.MaxEntries)
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	var accounts *fsys.Accounts
	if r.guest.Files != nil {
		accounts, _ = r.guest.Files.Accounts() // what cannot be read is given by number
	}
	d := details{
		procfs: fs, accounts: accounts, bare: in.OmitArguments, texts: newBudget(len(list)),
		booted: time.Now().Add(-sinceBoot()),
	}
	infos := make([]*pb.ProcessInfo, len(list))
	for i, e := range list {
		infos[i] = d.info(e)
	}
	return infos, nil
}

// entries reads those whose name has filter in it, in any case, and the threads of such a process.
func (p *procfs) entries(before, now *sample, filter string) []*entry {
	filter = strings.ToLower(filter)
	list := make([]*entry, 0, len(now.tasks))
	matching := 0 // the last process that matches
	for _, t := range now.tasks {
		if t.tid != t.pid && t.pid != matching {
			continue
		}
		e := p.entry(t)
		if e == nil {
			continue
		}
		if t.tid == t.pid {
			p.completeName(e)
			if filter != "" && !strings.Contains(strings.ToLower(e.name), filter) {
				continue
			}
			matching = t.pid
		}
		e.cpu = share(before, now, t, time.Duration(e.start)*tick)
		list = append(list, e)
	}
	return list
}

// maxName is how long a name in stat can be; the kernel cuts what is longer.
const maxName = 15

// completeName finds the rest of a name that the kernel has cut: it begins the name of the program, or, of a script, that of
// the first argument.
func (p *procfs) completeName(e *entry) {
	if len(e.name) != maxName || e.kernel {
		return
	}
	raw, _ := p.arguments(e)
	program, rest, _ := bytes.Cut(raw, []byte{0})
	first, _, _ := bytes.Cut(rest, []byte{0})
	for _, path := range [][]byte{program, first} {
		base := path[bytes.LastIndexByte(path, '/')+1:]
		if bytes.HasPrefix(base, []byte(e.name)) && len(base) <= 255 { // the longest name of a file
			e.name = string(base)
			return
		}
	}
}

// details reads the rest of the entries that remain.
type details struct {
	*procfs
	accounts *fsys.Accounts
	bare     bool // without arguments
	texts    *budget
	booted   time.Time
}

func (d *details) info(e *entry) *pb.ProcessInfo {
	d.texts.next()
	info := &pb.ProcessInfo{
		Pid: uint32(e.tid), Ppid: uint32(e.ppid), Name: d.texts.take(printable(e.name)),
		CpuPercent: e.cpu, MemoryBytes: e.resident, ThreadCount: uint32(e.threads),
		State: stateName(e.state), StateCode: printable(string(rune(e.state))),
		StartTicks: e.start, StartedAt: timestamppb.New(d.booted.Add(time.Duration(e.start) * tick).Round(tick)),
	}
	if uid, ok := d.owner(e.pid); ok {
		info.User = d.texts.take(printable(d.accounts.UserName(uid)))
	}
	if e.tid != e.pid {
		info.ThreadOf, info.ThreadCount = uint32(e.pid), 1
		return info
	}
	if !e.kernel {
		raw, more := d.arguments(e)
		info.CommandLine = d.texts.take(commandLine(raw, more, d.bare, d.texts.limit()))
		info.WorkingDirectory = d.texts.take(text.EscapePath(d.workingDirectory(e.pid)))
	}
	return info
}
