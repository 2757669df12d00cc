package facts

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v3/common"
	"github.com/shirou/gopsutil/v3/disk"
)

// Disk is one mounted file system, in bytes. Used and Available do not add up to Total where some is kept for root.
type Disk struct {
	Mount, Device, Type    string
	Total, Used, Available uint64
}

const (
	// diskWait is how long a report waits for all file systems together: one that is well answers from memory.
	diskWait = 250 * time.Millisecond
	// diskStale is how long the last answer of a file system that hangs is still told.
	diskStale = time.Minute
)

// Disks asks file systems how full they are. One that hangs holds nobody up: it has at most one question open, and its last
// answer is told for a minute, then nothing. The goroutine of such a question ends when the file system answers, and
// nothing can make it end before. The zero value works; it is safe for concurrent use.
type Disks struct {
	mu     sync.Mutex
	probes map[string]*probe // by mount point

	usage func(path string) (*disk.UsageStat, error) // nil: disk.Usage
}

// probe is what is known of one file system.
type probe struct {
	open   chan struct{} // closed when the question is answered; nil: none is open
	last   Disk
	at     time.Time
	answer bool // there is a last
}

// Read lists the file systems that hold data: on block devices, shared by the host, or from the network. A file system
// that is mounted in several places stands there once.
func (d *Disks) Read(ctx context.Context) ([]Disk, error) {
	mounts, err := dataMounts(ctx)
	if err != nil {
		return nil, err
	}
	var open []chan struct{}
	for _, m := range mounts {
		open = append(open, d.ask(m))
	}
	timer := time.NewTimer(diskWait)
	defer timer.Stop()
wait:
	for _, answered := range open {
		select {
		case <-answered:
		case <-timer.C:
			break wait
		case <-ctx.Done():
			break wait
		}
	}
	return d.collect(mounts), nil
}

// ask opens a question to a file system, unless one is open.
func (d *Disks) ask(m Disk) chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.probes == nil {
		d.probes = map[string]*probe{}
	}
	p := d.probes[m.Mount]
	if p == nil {
		p = &probe{}
		d.probes[m.Mount] = p
	}
	if p.open != nil {
		return p.open
	}
	usage := d.usage
	if usage == nil {
		usage = disk.Usage
	}
	open := make(chan struct{})
	p.open = open
	go func() {
		u, err := usage(m.Mount)
		d.mu.Lock()
		defer d.mu.Unlock()
		if p.answer = err == nil; p.answer {
			p.last, p.at = Disk{Mount: m.Mount, Device: m.Device, Type: m.Type, Total: u.Total, Used: u.Used, Available: u.Free}, time.Now()
		}
		p.open = nil
		close(open)
	}()
	return open
}

// collect gives what is known of mounts, and forgets all others.
func (d *Disks) collect(mounts []Disk) []Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []Disk
	known := map[string]bool{}
	for _, m := range mounts {
		known[m.Mount] = true
		p := d.probes[m.Mount]
		if p == nil {
			continue // another report, to which it was not mounted yet or any more, has forgotten it meanwhile
		}
		if p.answer && time.Since(p.at) < diskStale && p.last.Device == m.Device && p.last.Total > 0 {
			list = append(list, p.last)
		}
	}
	for mount, p := range d.probes {
		if !known[mount] && p.open == nil {
			delete(d.probes, mount)
		}
	}
	return list
}

// dataMounts lists the mounts that hold data, without touching them.
func dataMounts(ctx context.Context) ([]Disk, error) {
	// Left to itself, gopsutil lists the mounts of process 1. We ask about them by path, so ours are the ones that count.
	ctx = context.WithValue(ctx, common.EnvKey, common.EnvMap{"HOST_PROC_MOUNTINFO": "/proc/self/mountinfo"})
	partitions, err := disk.PartitionsWithContext(ctx, true)
	if err != nil {
		return nil, err
	}
	var mounts []Disk
	for _, p := range partitions {
		if !holdsData(p.Fstype, p.Device) && p.Mountpoint != "/" {
			continue
		}
		m := Disk{Mount: p.Mountpoint, Device: p.Device, Type: p.Fstype}
		same := slices.IndexFunc(mounts, func(o Disk) bool { return o.Device == m.Device && o.Type == m.Type })
		switch {
		case same < 0:
			mounts = append(mounts, m)
		case slices.Contains(p.Opts, "bind"): // a part of it
		case mounts[same].Mount == m.Mount, m.Mount == "/":
			mounts[same] = m
		}
	}
	return mounts, nil
}

// holdsData says whether a file system is one that fills up: not the kernel's own ones, memory, or read-only images, which
// are always full.
func holdsData(kind, device string) bool {
	switch kind {
	case "squashfs", "erofs", "iso9660", "udf", "cramfs", "devtmpfs", "fuse.snapfuse":
		return false
	case "nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "zfs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs",
		"fuse.ceph", "fuse.rclone", "vboxsf":
		return true
	}
	return strings.HasPrefix(device, "/dev/") || len(device) >= 2 && device[1] == ':' // the latter on Windows
}
