package process

import (
	"context"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// read reads the processes that are asked for. One that ends meanwhile has no command line.
func (r *Room) read(ctx context.Context, in *pb.ListProcessesRequest, by order) ([]*pb.ProcessInfo, error) {
	before, now, err := r.take(ctx)
	if err != nil {
		return nil, err
	}
	filter := strings.ToLower(in.Filter)
	var list []*entry
	for _, e := range now.processes {
		if !strings.Contains(strings.ToLower(e.name), filter) {
			continue
		}
		list = append(list, e)
		if in.IncludeThreads {
			list = append(list, now.threads[e.pid]...)
		}
	}
	for _, e := range list {
		e.cpu = now.share(before, e)
	}
	list = sortAndCut(list, by, in.MaxEntries)
	d := details{bare: in.OmitArguments, texts: newBudget(len(list)), names: map[string]string{}, of: map[int]opened{}}
	infos := make([]*pb.ProcessInfo, len(list))
	for i, e := range list {
		if err := context.Cause(ctx); err != nil { // a name may be asked for in the domain
			return nil, err
		}
		infos[i] = d.info(e)
	}
	return infos, nil
}

// details reads the rest of the entries that remain.
type details struct {
	bare  bool // without arguments
	texts *budget
	names map[string]string // of users by their SIDs
	of    map[int]opened    // by pid
}

// opened is what is read of one process.
type opened struct{ user, line, dir string }

func (d *details) info(e *entry) *pb.ProcessInfo {
	d.texts.next()
	info := &pb.ProcessInfo{
		Pid: uint32(e.tid), Ppid: uint32(max(e.ppid, 0)), Name: d.texts.take(printable(e.name)),
		CpuPercent: e.cpu, MemoryBytes: e.resident, ThreadCount: uint32(e.threads),
		State: stateName(e.state), StateCode: string(rune(e.state)),
		StartTicks: e.start, StartedAt: timestamppb.New(time.UnixMicro(int64(e.start))),
	}
	t, known := d.of[e.pid]
	if !known {
		t = d.open(e)
		d.of[e.pid] = t
	}
	info.User = d.texts.take(printable(t.user))
	if e.tid != e.pid {
		info.ThreadOf = uint32(e.pid)
		return info
	}
	info.CommandLine = text.Truncate(printable(t.line), d.texts.limit())
	d.texts.take(info.CommandLine)
	info.WorkingDirectory = d.texts.take(text.EscapePath(t.dir))
	return info
}

// open reads what needs a handle of the process, as far as the agent may.
func (d *details) open(e *entry) (t opened) {
	const all = windows.PROCESS_QUERY_INFORMATION | windows.PROCESS_VM_READ
	handle, err := windows.OpenProcess(all, false, uint32(e.pid))
	if err != nil {
		handle, err = windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(e.pid))
	}
	if err != nil {
		return t
	}
	defer windows.CloseHandle(handle)
	var creation, exit, kernel, user windows.Filetime
	if windows.GetProcessTimes(handle, &creation, &exit, &kernel, &user) != nil || startTicks(creation.Nanoseconds()) != e.start {
		return t // another process has the pid by now
	}
	t.user = d.owner(handle)
	parameters := readParameters(handle)
	t.dir = parameters.dir
	switch {
	case d.bare && parameters.program != "":
		t.line = parameters.program
	case d.bare:
		t.line = imagePath(handle)
	default:
		t.line = parameters.line
	}
	return t
}

// owner is the user of a process by name, with its domain; empty: it cannot be read.
func (d *details) owner(handle windows.Handle) string {
	var token windows.Token
	if windows.OpenProcessToken(handle, windows.TOKEN_QUERY, &token) != nil {
		return ""
	}
	defer token.Close()
	user, err := token.GetTokenUser()
	if err != nil {
		return ""
	}
	sid := user.User.Sid.String()
	name, known := d.names[sid]
	if !known {
		name = sid
		if account, domain, _, err := user.User.Sid.LookupAccount(""); err == nil {
			name = account
			if domain != "" {
				name = domain + `\` + account
			}
		}
		d.names[sid] = name
	}
	return name
}

// parameters are what a process was started with.
type parameters struct{ line, program, dir string }

// readParameters reads them from the memory of a process, which may have written anything there since. What cannot be read
// is empty. Addresses of another process are numbers here: as pointers they would mean something to the garbage collector.
func readParameters(handle windows.Handle) (p parameters) {
	var basic struct { // PROCESS_BASIC_INFORMATION
		_              uint64
		PebBaseAddress uintptr
		_              [4]uintptr
	}
	err := windows.NtQueryInformationProcess(handle, windows.ProcessBasicInformation, unsafe.Pointer(&basic),
		uint32(unsafe.Sizeof(basic)), nil)
	if err != nil || basic.PebBaseAddress == 0 {
		return p
	}
	from := readAddress(handle, basic.PebBaseAddress+unsafe.Offsetof(windows.PEB{}.ProcessParameters))
	if from == 0 {
		return p
	}
	p.line = readString(handle, from+unsafe.Offsetof(windows.RTL_USER_PROCESS_PARAMETERS{}.CommandLine))
	p.program = readString(handle, from+unsafe.Offsetof(windows.RTL_USER_PROCESS_PARAMETERS{}.ImagePathName))
	p.dir = readString(handle, from+unsafe.Offsetof(windows.RTL_USER_PROCESS_PARAMETERS{}.CurrentDirectory)+
		unsafe.Offsetof(windows.CURDIR{}.DosPath))
	if len(p.dir) > len(`C:\`) {
		p.dir = strings.TrimSuffix(p.dir, `\`)
	}
	return p
}

// readString reads the text of a UNICODE_STRING; empty where it cannot be read.
func readString(handle windows.Handle, at uintptr) string {
	var length uint16
	if !readMemory(handle, at, unsafe.Pointer(&length), unsafe.Sizeof(length)) || length < 2 {
		return ""
	}
	from := readAddress(handle, at+unsafe.Offsetof(windows.NTUnicodeString{}.Buffer))
	content := make([]uint16, length/2)
	if from == 0 || !readMemory(handle, from, unsafe.Pointer(&content[0]), uintptr(length&^1)) {
		return ""
	}
	return windows.UTF16ToString(content)
}

// readAddress reads an address; 0 where it cannot be read.
func readAddress(handle windows.Handle, at uintptr) (address uintptr) {
	readMemory(handle, at, unsafe.Pointer(&address), unsafe.Sizeof(address))
	return address
}

// readMemory copies from the memory of a process; false: it cannot be read.
func readMemory(handle windows.Handle, from uintptr, to unsafe.Pointer, size uintptr) bool {
	var n uintptr
	err := windows.ReadProcessMemory(handle, from, (*byte)(to), size, &n)
	return err == nil && n == size
}
