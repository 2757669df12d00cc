package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// suite and packages say what the guest is: a small Debian 12 server as a cloud image has it, plus the peers and tools that
// tests look at; NetworkManager, ifupdown and an X server without a screen are there, and a test starts them. Whatever is in
// one of the constants below is part of the recipe's hash.
const (
	suite = "bookworm"

	packages = "systemd,systemd-sysv,udev,dbus,netplan.io,iproute2,iputils-ping,procps,kmod,passwd,util-linux,bash," +
		"sudo,acl,attr,e2fsprogs,qemu-guest-agent,openssh-server,linux-image-cloud-amd64,network-manager,ifupdown,isc-dhcp-client," +
		"libpam-systemd,xserver-xorg-core,xserver-xorg-video-dummy,x11-xserver-utils,xclip"

	// bootstrap makes $OUT/root.tar. INITRD=No spares the kernel package's own initramfs, which nothing here boots. What draws
	// in three dimensions, and a compiler, are large, and nobody runs them.
	bootstrap = `
INITRD=No mmdebstrap --mode=$MODE --variant=minbase --format=tar --skip=output/dev \
	--aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
	--dpkgopt='path-exclude=/usr/lib/*/dri/*' --dpkgopt='path-exclude=/usr/lib/*/libLLVM*' \
	--dpkgopt='path-exclude=/usr/lib/*/libz3*' --dpkgopt='path-exclude=/usr/lib/*/libicu*' --dpkgopt='path-exclude=/usr/lib/gcc/*' \
	--include="$PACKAGES" --customize-hook="$CUSTOMIZE" "$SUITE" "$OUT/root.tar"
`

	// customize runs with the new root as $1. What it masks costs an emulated machine seconds of its boot, or writes to
	// the disk behind a test's back.
	customize = `
set -e
root=$1
cd "$root"
echo guest > etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 guest\n::1 localhost\n' > etc/hosts
echo 5f1f3c0b6d2a4e0c9a7b8d1e2f304152 > etc/machine-id
printf '/dev/vda / ext4 errors=remount-ro 0 0\n' > etc/fstab
echo 'nameserver 10.0.2.3' > etc/resolv.conf
echo 'LANG=C.UTF-8' > etc/default/locale
cat > etc/netplan/50-guest.yaml <<'YAML'
network:
  version: 2
  ethernets:
    ens3:
      addresses: [10.0.2.15/24]
      routes: [{to: default, via: 10.0.2.2}]
YAML
chmod 600 etc/netplan/50-guest.yaml
echo 'SUBSYSTEM=="virtio-ports", ATTR{name}=="org.qemu.guest_agent.0", TAG+="systemd"' > etc/udev/rules.d/60-qemu-guest-agent.rules
rm -f etc/systemd/system/multi-user.target.wants/ssh.service etc/systemd/system/sshd.service
rm -f etc/systemd/system/*.wants/NetworkManager*.service etc/systemd/system/*.wants/networking.service
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
	fstrim.timer getty@tty1.service serial-getty@ttyS0.service getty-static.service systemd-pstore.service \
	systemd-networkd-wait-online.service; do
	ln -sf /dev/null "etc/systemd/system/$unit"
done
rm -rf var/cache/apt/*.bin var/lib/apt/lists/*
`

	// pack turns the archive into the files of Root. Everything is written at once and never by the guest's kernel in the
	// background, hence no lazy tables.
	pack = `
set -e
PATH=$PATH:/usr/sbin:/sbin
cd "$OUT"
mkdir tree
tar --extract --file=root.tar --directory=tree --numeric-owner --xattrs --xattrs-include='*'
rm root.tar
mkdir -p tree/dev
mke2fs -q -t ext4 -L root -E lazy_itable_init=0,lazy_journal_init=0 -d tree root.raw 3G
cp tree/boot/vmlinuz-* vmlinuz
cp tree/boot/config-* config
kernel=$(echo tree/usr/lib/modules/*)
mkdir modules
n=10
for m in $MODULES; do
	cp "$kernel/kernel/$m.ko" "modules/$n-${m##*/}.ko"
	n=$((n+1))
done
rm -rf tree
`

	// modules is what the guest loads before it mounts its disk, in the order of dependencies (virtio needs virtio_ring).
	// All but the first six would come later by themselves; here they spare a dozen modprobe processes.
	modules = "drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_modern_dev " +
		"drivers/virtio/virtio_pci_legacy_dev drivers/virtio/virtio_pci drivers/block/virtio_blk " +
		"drivers/char/virtio_console net/core/failover drivers/net/net_failover drivers/net/virtio_net " +
		"drivers/char/hw_random/virtio-rng"

	recipe = suite + packages + bootstrap + customize + pack + modules
)

// buildRoot fills dir with a root layer.
func buildRoot(ctx context.Context, dir string, log io.Writer) error {
	mode, mapped := "root", []string(nil)
	if os.Geteuid() != 0 {
		// The archive keeps owners that an ordinary user cannot create; in a namespace of subordinate ids it can.
		mode, mapped = "unshare", []string{"unshare", "--map-root-user", "--map-auto"}
	}
	env := append(os.Environ(), "OUT="+dir, "MODE="+mode, "SUITE="+suite, "PACKAGES="+packages,
		"CUSTOMIZE="+strings.TrimSpace(customize), "MODULES="+modules)
	steps := [][]string{
		{"sh", "-c", bootstrap},
		append(mapped, "sh", "-c", pack),
	}
	for _, argv := range steps {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env, cmd.Stdout, cmd.Stderr = env, log, log
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", argv[0], err)
		}
	}
	for _, name := range []string{"root.raw", "vmlinuz", "modules"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
