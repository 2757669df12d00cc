//go:build vm

package vmtest_test

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// nfsPrograms are what serves and mounts NFS, of Debian's nfs-kernel-server and nfs-common.
var nfsPrograms = []string{"/usr/sbin/exportfs", "/usr/sbin/rpc.mountd", "/usr/sbin/mount.nfs"}

// A file system of a server that has stopped answering, mounted hard, keeps no freeze and no thaw waiting, and is named by its
// type.
func TestQuiesceBesideNFSThatHangs(t *testing.T) {
	files := []string{"/usr/sbin/mount.nfs4"}
	for _, program := range nfsPrograms {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs an NFS server: apt-get install --no-install-recommends nfs-kernel-server")
		}
		files = append(files, withLibraries(t, program)...)
	}
	archive := filepath.Join(t.TempDir(), "nfs.tar")
	slices.Sort(files)
	must(t, command(append([]string{"tar", "-C", "/", "-chf", archive, "--"}, slices.Compact(files)...)...))
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	ctx := limited(t, 5*time.Minute)
	must(t, vm.Put(ctx, archive, "/run/nfs.tar", 0o644))
	vm.Must(t, `tar -C / --skip-old-files --keep-directory-symlink -xf /run/nfs.tar && rm /run/nfs.tar
		mkdir -p /srv/export /srv/nfs /var/lib/nfs/sm /var/lib/nfs/v4recovery && touch /var/lib/nfs/etab /var/lib/nfs/rmtab && echo data > /srv/export/f
		modprobe -a nfsd nfs nfsv4 && mount -t nfsd nfsd /proc/fs/nfsd
		echo 10 > /proc/fs/nfsd/nfsv4gracetime; echo 10 > /proc/fs/nfsd/nfsv4leasetime; echo '-2 -3 +4 +4.2' > /proc/fs/nfsd/versions || true
		(rpc.mountd -F -N 3 </dev/null >/run/mountd.log 2>&1 &)
		exportfs -i -o rw,insecure,no_root_squash,no_subtree_check,fsid=0 127.0.0.1:/srv/export
		echo 'tcp 2049' > /proc/fs/nfsd/portlist && echo 2 > /proc/fs/nfsd/threads`)
	vm.Must(t, "timeout 60 mount.nfs4 127.0.0.1:/ /srv/nfs -o vers=4.2,hard,noac && grep -q data /srv/nfs/f")
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	vm.Must(t, "echo 0 > /proc/fs/nfsd/threads")
	vm.Must(t, "(touch /srv/nfs/f && touch /run/answered) </dev/null >/dev/null 2>&1 & sleep 2; test ! -e /run/answered") // it hangs

	begun := time.Now()
	reply := freezeGuest(t, c, &pb.QuiesceFilesystemsRequest{})
	took := time.Since(begun)
	at := slices.IndexFunc(reply.Frozen, func(f *pb.FrozenFilesystem) bool { return f.MountPoint == "/srv/nfs" })
	if at < 0 || reply.Frozen[at].Frozen || !strings.HasPrefix(reply.Frozen[at].Error, "nfs4 cannot be frozen") {
		t.Error(reply)
	} else {
		t.Log(reply.Frozen[at].Error)
	}
	if !slices.ContainsFunc(reply.Frozen, func(f *pb.FrozenFilesystem) bool { return f.MountPoint == "/" && f.Frozen }) {
		t.Error("the root is not frozen:", reply)
	}
	begun = time.Now()
	thawGuest(t, c, reply.QuiesceToken)
	t.Logf("frozen within %v and thawed within %v", took, time.Since(begun))

	named, err := client.Call[*pb.QuiesceFilesystemsResponse](ctx, c, &pb.QuiesceFilesystemsRequest{MountPoints: []string{"/srv/nfs"}})
	if err == nil || !strings.Contains(err.Error(), "nfs4 cannot be frozen") {
		t.Error(named, err)
	}
	thawed, err := client.Call[*pb.ThawFilesystemsResponse](ctx, c, &pb.ThawFilesystemsRequest{MountPoints: []string{"/srv/nfs"}})
	if err == nil || !strings.Contains(err.Error(), "no file system that can be frozen") {
		t.Error(thawed, err)
	}
	vm.Must(t, "test ! -e /run/answered && echo 2 > /proc/fs/nfsd/threads") // it hung all the time
	eventually(t, vm, "the server answers again", "test -e /run/answered")
	vm.Must(t, "umount /srv/nfs && echo 0 > /proc/fs/nfsd/threads")
}
