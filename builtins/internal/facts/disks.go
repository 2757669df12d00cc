package facts

import (
	"context"
	"strings"
	"sync"
	"time"
)

// Disk is one mounted file system, in bytes. Total exceeds Used and Available where space is reserved for root.
type Disk struct {
	Mount, Device, Type    string
	Total, Used, Available uint64
	// How many files it can hold and holds; 0 where it has no fixed number.
	Inodes, InodesUsed uint64
}

const (
	// diskWait bounds how long Read waits for all file systems together: one that does not hang answers from memory.
	diskWait = 250 * time.Millisecond
	// diskStale is how long the last answer of a file system that hangs is still returned.
	diskStale = time.Minute
)

// Disks reads how full the file systems are. One that hangs delays no call: it has at most one query in flight, and its last
// answer is returned for a minute, then none. The goroutine of a query ends when the file system answers; nothing ends it
// earlier. The zero value works; it is safe for concurrent use.
type Disks struct {
	mu     sync.Mutex
	probes map[string]*probe // by mount point

	sizes func(path string) (Disk, error) // nil: sizes
}

// probe is the state of one file system.
type probe struct {
	inFlight chan struct{} // closed when the query returned; nil: there is none
	last     Disk
	at       time.Time
	valid    bool // last is set
}

// Read lists the file systems that hold data: on block devices, shared by the host, or from the network. A file system
// that is mounted in several places is listed once.
func (d *Disks) Read(ctx context.Context) ([]Disk, error) {
	mounts, err := dataMounts(ctx)
	if err != nil {
		return nil, err
	}
	var queries []chan struct{}
	for _, m := range mounts {
		queries = append(queries, d.query(m))
	}
	timer := time.NewTimer(diskWait)
	defer timer.Stop()
wait:
	for _, answered := range queries {
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

// query starts a query of a file system, unless one is in flight. The returned channel is closed at its end.
func (d *Disks) query(m Disk) chan struct{} {
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
	if p.inFlight != nil {
		return p.inFlight
	}
	ask := d.sizes
	if ask == nil {
		ask = sizes
	}
	done := make(chan struct{})
	p.inFlight = done
	go func() {
		answer, err := ask(m.Mount)
		d.mu.Lock()
		defer d.mu.Unlock()
		if p.valid = err == nil; p.valid {
			answer.Mount, answer.Device, answer.Type = m.Mount, m.Device, m.Type
			p.last, p.at = answer, time.Now()
		}
		p.inFlight = nil
		close(done)
	}()
	return done
}

// collect returns the last answers of mounts, and drops the probes of all others.
func (d *Disks) collect(mounts []Disk) []Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []Disk
	known := map[string]bool{}
	for _, m := range mounts {
		known[m.Mount] = true
		p := d.probes[m.Mount]
		if p == nil {
			continue // a concurrent call that saw other mounts has dropped it
		}
		if p.valid && time.Since(p.at) < diskStale && p.last.Device == m.Device && p.last.Total > 0 {
			list = append(list, p.last)
		}
	}
	for mount, p := range d.probes {
		if !known[mount] && p.inFlight == nil {
			delete(d.probes, mount)
		}
	}
	return list
}

// Mounts lists the file systems that Read would list, without their sizes, and without touching them.
func Mounts(ctx context.Context) ([]Disk, error) { return dataMounts(ctx) }

// holdsData reports whether a file system can fill up: not those of the kernel, in memory, or of read-only images, which are
// always full.
func holdsData(kind, device string) bool {
	switch kind {
	case "squashfs", "erofs", "iso9660", "udf", "cramfs", "devtmpfs", "fuse.snapfuse":
		return false
	case "nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "zfs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs",
		"fuse.ceph", "fuse.rclone", "fuse.mergerfs", "fuse.juicefs", "fuse.gcsfuse", "fuse.blobfuse2", "fuse.vmhgfs-fuse", "vboxsf",
		"prl_fs", "lustre", "gpfs", "beegfs", "afs":
		return true
	}
	return strings.HasPrefix(device, "/dev/") || len(device) >= 2 && device[1] == ':' // the latter on Windows
}
