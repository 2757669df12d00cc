package sandbox

import (
	"crypto/rand"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/confine"
)

// lockThread has nothing to do: a runner ends with the last handle of its job object.
func lockThread() {}

// ownProgram is the agent itself.
func ownProgram() string {
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}

// cgroup is the job object of a runner, the event that stops its script, and the process itself.
type cgroup struct {
	job, event, process windows.Handle
	token               windows.Token
}

// pipeBuffer is the size of the buffers of a pipe, in bytes.
const pipeBuffer = 64 << 10

// newConn makes the pipe, which is the runner's standard input for both directions, and sets how the process is started:
// suspended, so that it does nothing before it is in its job object, with a restricted token, and without any other handle
// than its standard ones and the event.
func (r *runner) newConn() (child *os.File, err error) {
	g := &cgroup{}
	r.cgroup = g
	defer func() {
		if err != nil {
			g.remove()
		}
	}()
	if g.token, err = runnerToken(); err != nil {
		return nil, fmt.Errorf("restricted token: %w", err)
	}
	if g.job, err = windows.CreateJobObject(nil, nil); err != nil {
		return nil, os.NewSyscallError("CreateJobObject", err)
	}
	inheritable := &windows.SecurityAttributes{Length: uint32(unsafe.Sizeof(windows.SecurityAttributes{})), InheritHandle: 1}
	if g.event, err = windows.CreateEvent(inheritable, 0, 0, nil); err != nil {
		return nil, os.NewSyscallError("CreateEvent", err)
	}
	r.cmd.Env = append(r.cmd.Env, fmt.Sprintf("%s=%d", confine.EventVariable, g.event))
	r.cmd.SysProcAttr = &syscall.SysProcAttr{
		HideWindow: true, Token: syscall.Token(g.token),
		CreationFlags:              windows.CREATE_SUSPENDED | windows.CREATE_NO_WINDOW | windows.CREATE_NEW_PROCESS_GROUP,
		AdditionalInheritedHandles: []syscall.Handle{syscall.Handle(g.event)},
	}
	var ours, theirs windows.Handle
	if ours, theirs, err = pipePair(); err != nil {
		return nil, err
	}
	r.conn = os.NewFile(uintptr(ours), "runner")
	child = os.NewFile(uintptr(theirs), "agent")
	r.cmd.Stdin = child
	return child, nil
}

// pipePair makes a pipe for both directions, of which the first end is overlapped, so that deadlines work.
func pipePair() (ours, theirs windows.Handle, err error) {
	name, err := windows.UTF16PtrFromString(`\\.\pipe\quantix-kvm-runner-` + rand.Text())
	if err != nil {
		return 0, 0, err
	}
	ours, err = windows.CreateNamedPipe(name,
		windows.PIPE_ACCESS_DUPLEX|windows.FILE_FLAG_OVERLAPPED|windows.FILE_FLAG_FIRST_PIPE_INSTANCE,
		windows.PIPE_TYPE_BYTE|windows.PIPE_REJECT_REMOTE_CLIENTS, 1, pipeBuffer, pipeBuffer, 0, nil)
	if err != nil {
		return 0, 0, os.NewSyscallError("CreateNamedPipe", err)
	}
	theirs, err = windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil, windows.OPEN_EXISTING,
		windows.SECURITY_SQOS_PRESENT|windows.SECURITY_ANONYMOUS, 0)
	if err != nil {
		windows.CloseHandle(ours)
		return 0, 0, os.NewSyscallError("CreateFile", err)
	}
	return ours, theirs, nil
}

// memoryOverhead is memory beyond the heap, in bytes: the program, stacks, and what the runtime keeps for itself.
const memoryOverhead = 128 << 20

// startCommand starts the runner's process.
func (r *runner) startCommand(Limits) error { return r.cmd.Start() }

// limit puts the suspended runner into its job object, with limits that back up the agent's own, and lets it run.
func (r *runner) limit(limits Limits) error {
	g := r.cgroup
	var l windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	l.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | windows.JOB_OBJECT_LIMIT_ACTIVE_PROCESS |
		windows.JOB_OBJECT_LIMIT_PROCESS_MEMORY | windows.JOB_OBJECT_LIMIT_JOB_MEMORY | windows.JOB_OBJECT_LIMIT_PROCESS_TIME |
		windows.JOB_OBJECT_LIMIT_DIE_ON_UNHANDLED_EXCEPTION
	l.BasicLimitInformation.ActiveProcessLimit = 1
	l.BasicLimitInformation.PerProcessUserTimeLimit = int64((2*limits.CPU + time.Second) / 100) // units of 100 ns
	l.ProcessMemoryLimit = uintptr(limits.Memory + memoryOverhead)
	l.JobMemoryLimit = l.ProcessMemoryLimit
	if err := setJob(g.job, windows.JobObjectExtendedLimitInformation, unsafe.Pointer(&l), unsafe.Sizeof(l)); err != nil {
		return err
	}
	ui := windows.JOBOBJECT_BASIC_UI_RESTRICTIONS{UIRestrictionsClass: 0xff} // all of them: windows, clipboard, desktops, …
	err := setJob(g.job, windows.JobObjectBasicUIRestrictions, unsafe.Pointer(&ui), unsafe.Sizeof(ui))
	if err != nil {
		return err
	}
	const access = windows.PROCESS_QUERY_LIMITED_INFORMATION | windows.PROCESS_VM_READ | windows.PROCESS_SET_QUOTA |
		windows.PROCESS_TERMINATE | windows.PROCESS_SUSPEND_RESUME | windows.PROCESS_QUERY_INFORMATION
	pid := uint32(r.cmd.Process.Pid) // os.Process holds a handle, so nobody else has the number
	if g.process, err = windows.OpenProcess(access, false, pid); err != nil {
		return os.NewSyscallError("OpenProcess", err)
	}
	if err := windows.AssignProcessToJobObject(g.job, g.process); err != nil {
		return os.NewSyscallError("AssignProcessToJobObject", err)
	}
	return resume(g.process)
}

func setJob(job windows.Handle, class uint32, info unsafe.Pointer, size uintptr) error {
	_, err := windows.SetInformationJobObject(job, class, uintptr(info), uint32(size))
	return os.NewSyscallError("SetInformationJobObject", err)
}

var resumeProcess = windows.NewLazySystemDLL("ntdll.dll").NewProc("NtResumeProcess")

// resume lets a process run that was started suspended.
func resume(process windows.Handle) error {
	if status, _, _ := resumeProcess.Call(uintptr(process)); status != 0 {
		return os.NewSyscallError("NtResumeProcess", windows.NTStatus(status))
	}
	return nil
}

// interrupt asks the runner to stop its script and to say where it was.
func (r *runner) interrupt() { windows.SetEvent(r.cgroup.event) } //nolint:errcheck // the kill that follows counts

// cpuTime returns the processor time of the process so far; false when it is gone.
func (r *runner) cpuTime() (time.Duration, bool) {
	var created, ended, kernel, user windows.Filetime
	if windows.GetProcessTimes(r.cgroup.process, &created, &ended, &kernel, &user) != nil {
		return 0, false
	}
	return ticks(kernel) + ticks(user), true
}

// ticks is a duration that Windows keeps as a number of 100 ns.
func ticks(f windows.Filetime) time.Duration {
	return time.Duration(uint64(f.HighDateTime)<<32|uint64(f.LowDateTime)) * 100
}

// memoryCounters is PROCESS_MEMORY_COUNTERS.
type memoryCounters struct {
	size, faults                                                   uint32
	peakWorkingSet, workingSet                                     uintptr
	peakPagedPool, pagedPool, peakNonPagedPool, nonPagedPool, page uintptr
	peakPage                                                       uintptr
}

var getProcessMemoryInfo = windows.NewLazySystemDLL("kernel32.dll").NewProc("K32GetProcessMemoryInfo")

// peakMemory returns the largest size of the process in memory so far, in bytes; 0 where that is not known.
func (r *runner) peakMemory() uint64 {
	c := memoryCounters{size: uint32(unsafe.Sizeof(memoryCounters{}))}
	ok, _, _ := getProcessMemoryInfo.Call(uintptr(r.cgroup.process), uintptr(unsafe.Pointer(&c)), uintptr(c.size))
	if ok == 0 {
		return 0
	}
	return uint64(c.peakWorkingSet)
}

// outOfMemory is false: over the limit of a job object an allocation fails, and the runner says so itself.
func (*cgroup) outOfMemory() bool { return false }

func oomKills() uint64 { return 0 }

// remove frees the handles, and with the last one of the job object ends what is in it.
func (g *cgroup) remove() {
	if g == nil {
		return
	}
	for _, h := range []*windows.Handle{&g.job, &g.event, &g.process} {
		if *h != 0 {
			windows.CloseHandle(*h)
			*h = 0
		}
	}
	if g.token != 0 {
		g.token.Close()
		g.token = 0
	}
}

// Signals that stand for the ends of a process that are signals elsewhere.
const (
	sigSys  = syscall.Signal(-1)
	sigKill = syscall.Signal(-2)
	sigXCPU = syscall.Signal(-3)
)

// exitStatus returns how the process ended by itself. The job object ends one that is over its processor time with the
// status ERROR_NOT_ENOUGH_QUOTA.
func (r *runner) exitStatus() (int, syscall.Signal) {
	code := r.cmd.ProcessState.ExitCode()
	if code == int(windows.ERROR_NOT_ENOUGH_QUOTA) {
		return code, sigXCPU
	}
	return code, 0
}
