package exec

import (
	"cmp"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Owner returns by which port the command, or the job, came that a process is part of; false: it is of none. What a command
// left running when it had ended is nobody's.
func (r *Room) Owner(pid int) (port string, known bool) {
	if r.guest.Runner == nil {
		return "", false
	}
	if port, known := r.guest.Runner.OwnerOf(pid); known {
		return port, true
	}
	if !r.jobs.kept() {
		return "", false
	}
	list, _ := r.jobs.list() // of one that cannot be read nobody knows the owner
	for _, job := range list {
		if job.State == pb.JobState_JOB_STATE_RUNNING && job.Pid > 1 && job.Port != "" && r.isOfJob(pid, int(job.Pid)) {
			return job.Port, true
		}
	}
	return "", false
}

// isOfJob reports whether a process belongs to the job whose first process is leader: it is in its control group or its
// session, descends from it, or is the supervisor above it.
func (r *Room) isOfJob(pid, leader int) bool {
	if supervisor := parentOf(leader); pid == supervisor && supervisor > 1 && supervisor != os.Getpid() {
		return true
	}
	if group := r.jobGroup(leader); group != "" && group == r.jobGroup(pid) {
		return true
	}
	for seen := 0; pid > 1 && seen < maxAncestors; pid, seen = parentOf(pid), seen+1 {
		if session, err := unix.Getsid(pid); pid == leader || err == nil && session == leader {
			return true
		}
	}
	return false
}

// maxAncestors bounds the way from a process to one that it descends from.
const maxAncestors = 1000

// jobGroup returns the control group that a runner made for the job that a process is part of; empty: none.
func (r *Room) jobGroup(pid int) string {
	name := cmp.Or(r.config.Commands.Name, "quantix-kvm") + "-job-"
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		before, own, made := strings.Cut(path, "/"+name)
		if own, _, _ = strings.Cut(own, "/"); ok && made { // it may have made others in it
			return before + "/" + name + own
		}
	}
	return ""
}

func parentOf(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "\nPPid:\t")
	line, _, _ := strings.Cut(rest, "\n")
	parent, _ := strconv.Atoi(line)
	return parent
}
