package proc

import (
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// setJob is SetInformationJobObject.
var setJob = windows.SetInformationJobObject

// tick is the unit of times of jobs.
const tick = 100 * time.Nanosecond

// newJob makes a job object. That of a tied command kills its processes when the agent ends, which has the only handle.
func newJob(tied bool, l Limits) (windows.Handle, error) {
	if l != (Limits{}) {
		if err := limitsHeld(); err != nil {
			return 0, err
		}
	}
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, os.NewSyscallError("CreateJobObject", err)
	}
	var info windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	if tied {
		info.BasicLimitInformation.LimitFlags |= windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	}
	if l.Memory != 0 {
		info.BasicLimitInformation.LimitFlags |= windows.JOB_OBJECT_LIMIT_JOB_MEMORY
		info.JobMemoryLimit = uintptr(l.Memory)
	}
	if l.Processor != 0 {
		info.BasicLimitInformation.LimitFlags |= windows.JOB_OBJECT_LIMIT_JOB_TIME
		info.BasicLimitInformation.PerJobUserTimeLimit = int64(max(l.Processor/tick, 1))
	}
	if info.BasicLimitInformation.LimitFlags == 0 {
		return job, nil
	}
	_, err = setJob(job, windows.JobObjectExtendedLimitInformation, uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)))
	if err != nil {
		windows.CloseHandle(job)
		return 0, os.NewSyscallError("SetInformationJobObject", err)
	}
	return job, nil
}

// jobAccounting is JOBOBJECT_BASIC_ACCOUNTING_INFORMATION.
type jobAccounting struct {
	TotalUserTime, TotalKernelTime, ThisPeriodTotalUserTime, ThisPeriodTotalKernelTime int64
	TotalPageFaultCount, TotalProcesses, ActiveProcesses, TotalTerminatedProcesses     uint32
}

// exceeded reports whether the processes of the job have used up the processor time that they had.
func (c *child) exceeded(l Limits) bool {
	if l.Processor == 0 {
		return false
	}
	var used jobAccounting
	err := windows.QueryInformationJobObject(c.job, windows.JobObjectBasicAccountingInformation,
		uintptr(unsafe.Pointer(&used)), uint32(unsafe.Sizeof(used)), nil)
	return err == nil && time.Duration(used.TotalUserTime) >= l.Processor/tick
}

// wineVersion is there under Wine alone.
var wineVersion = windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version")

// limitsHeld returns why limits would not be held: Wine takes them and does nothing.
var limitsHeld = func() error {
	if wineVersion.Find() == nil {
		return fault.Unsupported("Wine holds no limits of a command")
	}
	return nil
}
