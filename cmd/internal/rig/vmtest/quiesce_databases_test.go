//go:build vm

package vmtest_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/image"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// programsDisk returns an image of a small Debian with the databases, and with LVM, for the guest. It is made once.
func programsDisk(t *testing.T) string {
	t.Helper()
	const build = `set -e
mmdebstrap --mode=root --variant=minbase --format=tar --skip=output/dev --aptopt='Apt::Install-Recommends "false"' \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--include=postgresql-15,sqlite3,lvm2,mawk bookworm "$OUT/root.tar"
mkdir "$OUT/tree" && tar --extract --file="$OUT/root.tar" --directory="$OUT/tree" --numeric-owner && mkdir -p "$OUT/tree/dev"
mke2fs -q -t ext4 -d "$OUT/tree" "$OUT/disk.raw" 1G && rm -r "$OUT/tree" "$OUT/root.tar"`
	cache, err := image.Cache()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := image.Layer(cache, "databases-"+image.Hash(build), func(tmp string) error {
		cmd := exec.Command("sh", "-c", build)
		cmd.Env = append(os.Environ(), "OUT="+tmp)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out[max(0, len(out)-2000):])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "disk.raw")
}

// command runs a program of the host.
func command(argv ...string) error {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%q: %w: %s", argv, err, out)
	}
	return nil
}

// postgresDir is where the host has the programs of PostgreSQL 15, which makes and checks what that of the guest writes to.
const postgresDir = "/usr/lib/postgresql/15/bin/"

// dataDisk is a disk of the guest that databases are on.
type dataDisk struct {
	kind, image string
	port        int // of PostgreSQL, in the guest and where the host checks
	node        string
}

// mounted calls f with the directory that an image of the host is mounted at meanwhile.
func mounted(image, options string, f func(dir string) error) error {
	dir := image + ".m"
	err := errors.Join(os.MkdirAll(dir, 0o755), command("mount", "-o", options, image, dir))
	if err != nil {
		return err
	}
	err = f(dir)
	for range 100 { // a process that is being started elsewhere may have it open
		if exec.Command("umount", dir).Run() == nil {
			return errors.Join(err, os.Remove(dir))
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.Join(err, fmt.Errorf("cannot unmount %s", dir))
}

// fill makes the databases on a disk.
func (d dataDisk) fill() error {
	return mounted(d.image, "loop", func(dir string) error {
		return errors.Join(
			command("install", "-d", "-o", "postgres", dir+"/pg"),
			command("runuser", "-u", "postgres", "--", postgresDir+"initdb", "-D", dir+"/pg",
				"--auth=trust", "--no-locale", "--data-checksums"),
			os.Mkdir(dir+"/sqlite", 0o777),
			command("sqlite3", dir+"/sqlite/db", "PRAGMA journal_mode=WAL; CREATE TABLE t (n INTEGER PRIMARY KEY, pad TEXT)"),
		)
	})
}

// start has the guest mount the disk below the Debian of programsDisk, start the databases, and write rows with the numbers
// from 1 on, each acknowledged by itself in a file in memory.
func (d dataDisk) start(t *testing.T, vm *vmtest.VM) {
	t.Helper()
	device := plugIn(t, vm, d.node, d.image, false)
	text := `set -e
modprobe KIND || true; cd /srv/programs; mkdir -p mnt/KIND; mount DEVICE mnt/KIND; chroot . chown -R postgres /mnt/KIND/pg
pg="chroot . setpriv --reuid=postgres --regid=postgres --clear-groups --"
port="-h /run/postgresql -p PORT"
$pg /usr/lib/postgresql/15/bin/postgres -D /mnt/KIND/pg -k /run/postgresql -p PORT -c listen_addresses= -c shared_buffers=16MB \
	-c max_wal_size=64MB -c max_connections=10 </dev/null >/run/pg.KIND.log 2>&1 &
n=0; until $pg psql $port -d postgres -qAtXc 'SELECT 1' >/dev/null 2>&1; do
	n=$((n+1)); [ $n -lt 300 ] || { cat /run/pg.KIND.log; exit 1; }; sleep 0.3
done
$pg psql $port -d postgres -qAtXc 'CREATE TABLE t (n BIGINT PRIMARY KEY, pad TEXT)'
(n=0; while :; do n=$((n+1)); echo "INSERT INTO t VALUES ($n, repeat(md5('$n'), 10)); SELECT $n;"; done |
	$pg psql $port -d postgres -qAtX) </dev/null >/run/acknowledged.pg.KIND 2>&1 &
(n=0; echo 'PRAGMA synchronous=FULL;'; while :; do
	n=$((n+1)); echo "INSERT INTO t VALUES ($n, hex(randomblob(200)));"; echo "SELECT $n;"; done |
	chroot . sqlite3 -batch /mnt/KIND/sqlite/db) </dev/null >/run/acknowledged.sqlite.KIND 2>&1 &
`
	vm.Must(t, strings.NewReplacer("KIND", d.kind, "DEVICE", device, "PORT", strconv.Itoa(d.port)).Replace(text))
	for _, name := range []string{"pg", "sqlite"} {
		eventually(t, vm, name+" writes", fmt.Sprintf("[ $(wc -l </run/acknowledged.%s.%s) -gt 20 ]", name, d.kind))
	}
}

// acknowledged returns how many rows of each database are.
func (d dataDisk) acknowledged(t *testing.T, vm *vmtest.VM) (rows [2]int) {
	t.Helper()
	for i, name := range []string{"pg", "sqlite"} {
		text := vm.Must(t, fmt.Sprintf("tail -n 1 /run/acknowledged.%s.%s", name, d.kind))
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("%s says %q", name, text)
		}
		rows[i] = n
	}
	return rows
}

// verdict is what is wrong with snapshots: how many have each fault.
type verdict struct{ replay, damaged, lost int }

// check checks a snapshot against the file system's check and those of the databases, and adds what is wrong to the verdict.
func (d dataDisk) check(snapshot string, before [2]int, v *verdict) error {
	if d.kind == "ext4" {
		out, err := exec.Command("dumpe2fs", "-h", snapshot).Output()
		if err != nil {
			return err
		}
		if bytes.Contains(out, []byte("needs_recovery")) {
			v.replay++
		} else if err := command("e2fsck", "-fn", snapshot); err != nil {
			v.damaged++
			return err
		}
	} else { // xfs leaves a record in its log at a freeze on purpose: what is there without it has to be whole
		err := mounted(snapshot, "loop,ro,norecovery,nouuid", func(dir string) error {
			return command("find", dir, "-type", "f", "-exec", "cksum", "{}", "+")
		})
		if err != nil {
			v.replay++
		}
	}
	options := "loop"
	if d.kind == "xfs" {
		options += ",nouuid"
	}
	var rows [2]int
	err := mounted(snapshot, options, func(dir string) (err error) {
		if rows[0], err = d.rowsOfPostgres(dir); err != nil {
			return err
		}
		const ask = "PRAGMA integrity_check; SELECT count(*) FROM t"
		out, err := exec.Command("sqlite3", "-batch", dir+"/sqlite/db", ask).CombinedOutput()
		sound, count, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		if err != nil || sound != "ok" {
			return fmt.Errorf("sqlite: %w %s", err, out)
		}
		rows[1], err = strconv.Atoi(count)
		return err
	})
	if err != nil {
		v.damaged++
		return err
	}
	if rows[0] < before[0] || rows[1] < before[1] {
		v.lost++
		return fmt.Errorf("%s: rows %v, and %v were acknowledged before", d.kind, rows, before)
	}
	return nil
}

// rowsOfPostgres starts a server of the host on the data, has it check them, and counts the rows.
func (d dataDisk) rowsOfPostgres(dir string) (int, error) {
	sockets, err := os.MkdirTemp("", "quiesce-pg-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(sockets)
	_ = os.Remove(dir + "/pg/postmaster.pid")
	if err := errors.Join(os.Chmod(sockets, 0o777), command("chown", "-R", "postgres", dir+"/pg")); err != nil {
		return 0, err
	}
	port := strconv.Itoa(d.port)
	control := func(verb string, more ...string) error {
		argv := []string{
			"runuser", "-u", "postgres", "--", postgresDir + "pg_ctl", "-s", "-w", "-t", "120", "-D", dir + "/pg", "-l", sockets + "/log", verb,
		}
		return command(append(argv, more...)...)
	}
	if err := control("start", "-o", "-k "+sockets+" -p "+port+" -c listen_addresses="); err != nil {
		said, _ := os.ReadFile(sockets + "/log")
		return 0, fmt.Errorf("%w: %s", err, said)
	}
	defer func() { _ = control("stop", "-m", "fast") }()
	to := []string{"-h", sockets, "-p", port, "-U", "postgres", "-d", "postgres"}
	if err := command(append([]string{postgresDir + "pg_amcheck", "--install-missing"}, to...)...); err != nil {
		return 0, err
	}
	to = append(to, "-qAtXc", "SELECT count(*) FROM t WHERE pad = repeat(md5(n::text), 10)")
	out, err := exec.Command("psql", to...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	return strconv.Atoi(strings.TrimSpace(string(out)))
}

// backup has QEMU begin to copy disks, all as they are at one moment, and returns the copies and what waits for their end.
func backup(t *testing.T, vm *vmtest.VM, disks []dataDisk, number int) (copies []string, await func()) {
	t.Helper()
	ctx := limited(t, 5*time.Minute)
	var actions []any
	for _, d := range disks {
		info, err := os.Stat(d.image)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(filepath.Dir(d.image), fmt.Sprintf("copy%d.raw", number))
		if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, info.Size())); err != nil {
			t.Fatal(err)
		}
		node := map[string]any{
			"driver": "raw", "node-name": "copy-" + d.node, "file": map[string]any{"driver": "file", "filename": file},
		}
		if err := vm.QMP(ctx, "blockdev-add", node, nil); err != nil {
			t.Fatal(err)
		}
		actions = append(actions, map[string]any{"type": "blockdev-backup", "data": map[string]any{
			"job-id": "job-" + d.node, "device": d.node, "target": "copy-" + d.node, "sync": "full",
		}})
		copies = append(copies, file)
	}
	if err := vm.QMP(ctx, "transaction", map[string]any{"actions": actions}, nil); err != nil {
		t.Fatal(err)
	}
	return copies, func() {
		for jobs := []any{nil}; len(jobs) > 0; pause(ctx, 50*time.Millisecond) {
			if err := vm.QMP(ctx, "query-block-jobs", nil, &jobs); err != nil {
				t.Fatal(err)
			}
		}
		for _, d := range disks {
			if err := vm.QMP(ctx, "blockdev-del", map[string]any{"node-name": "copy-" + d.node}, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Snapshots of the running guest while PostgreSQL and SQLite write to ext4 and xfs: each that was taken while the guest was
// frozen mounts without a replay of ext4's journal, passes the databases' own checks, and has every row that was acknowledged
// before. The same without a freeze is counted beside it. A logical volume of LVM is frozen with the rest. QUANTIX_DATABASES=1
// has the test run, and QUANTIX_ROUNDS says how many snapshots of each there are.
func TestQuiesceDatabases(t *testing.T) {
	if os.Getenv("QUANTIX_DATABASES") == "" {
		t.Skip("takes minutes: set QUANTIX_DATABASES=1, and QUANTIX_ROUNDS for more than 3 snapshots of each")
	}
	if _, err := os.Stat(postgresDir); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root, and PostgreSQL 15 and sqlite3 on the host: ", err)
	}
	rounds := numberFrom(t, "QUANTIX_ROUNDS", 3)
	programs := programsDisk(t)
	base, err := os.MkdirTemp("", "quiesce-databases-") // others than root have to get there
	if err == nil {
		err = os.Chmod(base, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	disks := []dataDisk{{kind: "ext4", port: 25432, node: "ext4"}, {kind: "xfs", port: 25433, node: "xfs"}}
	for i := range disks {
		d := &disks[i]
		dir := filepath.Join(base, d.kind)
		d.image = filepath.Join(dir, "disk.raw")
		err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, 320<<20),
			command("mkfs."+d.kind, "-q", d.image))
		if err == nil {
			err = d.fill()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	volume := filepath.Join(base, "lvm.raw")
	if err := errors.Join(os.WriteFile(volume, nil, 0o600), os.Truncate(volume, 64<<20)); err != nil {
		t.Fatal(err)
	}
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	device := plugIn(t, vm, "programs", programs, true)
	vm.Must(t, `mkdir /srv/programs && mount -o ro,noload `+device+` /srv/programs && cd /srv/programs &&
		for d in dev proc sys run; do mount --rbind /$d $d; done &&
		mount -t tmpfs none mnt && mount -t tmpfs none tmp && mkdir -p /run/postgresql && chmod 1777 tmp /run/postgresql`)
	device = plugIn(t, vm, "lvm", volume, false)
	vm.Must(t, `modprobe dm_mod; cd /srv/programs && chroot . sh -c 'no="backup/backup=0 backup/archive=0"
		pvcreate --config "$no" `+device+` && vgcreate --config "$no" vg `+device+` &&
		lvcreate --config "$no" -Zn -Wn -L 32M -n data vg' >/run/lvm.log 2>&1 || { cat /run/lvm.log; exit 1; }
		mkdir /srv/lvm; [ -e /dev/mapper/vg-data ] || dmsetup mknodes
		mkfs.ext4 -q /dev/mapper/vg-data && mount /dev/mapper/vg-data /srv/lvm`)
	for _, d := range disks {
		d.start(t, vm)
	}
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	var verdicts [2][2]verdict // by disk, and whether it was frozen
	for round := range 2 * rounds {
		frozen := round % 2
		var before [2][2]int
		for i, d := range disks {
			before[i] = d.acknowledged(t, vm)
		}
		token := ""
		if frozen == 1 {
			reply := freezeGuest(t, c, &pb.QuiesceFilesystemsRequest{})
			token = reply.QuiesceToken
			for _, point := range []string{"/", "/srv/lvm", "/srv/programs/mnt/ext4", "/srv/programs/mnt/xfs"} {
				if !slices.ContainsFunc(reply.Frozen, func(f *pb.FrozenFilesystem) bool { return f.MountPoint == point && f.Frozen }) {
					t.Errorf("%s is not frozen: %v", point, reply.Frozen)
				}
			}
		}
		copies, await := backup(t, vm, disks, round)
		if frozen == 1 {
			thawGuest(t, c, token)
		}
		await()
		for i, d := range disks {
			v := &verdicts[i][frozen]
			err := d.check(copies[i], before[i], v)
			if err != nil {
				t.Logf("round %d, frozen %d, %s: %v", round, frozen, d.kind, err)
			}
			os.Remove(copies[i])
		}
	}
	for i, d := range disks {
		t.Logf("%s: of %d snapshots each, frozen %+v, not frozen %+v; %v rows at the end",
			d.kind, rounds, verdicts[i][1], verdicts[i][0], d.acknowledged(t, vm))
		if verdicts[i][1] != (verdict{}) {
			t.Errorf("%s: frozen snapshots are bad: %+v", d.kind, verdicts[i][1])
		}
	}
}
