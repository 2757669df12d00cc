#!/bin/sh
# Installs the agent from this directory where no package fits: install.sh [--uninstall]. DESTDIR is a tree that is not booted.
# Configuration and state stay, at an installation over an older one and at --uninstall.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR:-}
units="quantix-kvm-agent.service quantix-kvm-agent-recover.service"

put() { # mode, file, target
	mkdir -p "$root$(dirname "$3")"
	cp "$here/$2" "$root$3.new"
	chmod "$1" "$root$3.new"
	chown 0:0 "$root$3.new" 2>/dev/null || true
	mv -f "$root$3.new" "$root$3" # a program that runs cannot be written
	if [ -z "$root" ] && command -v restorecon >/dev/null; then restorecon "$3" || true; fi
}

system=none
if [ -e "$root/lib/systemd/systemd" ] || [ -e "$root/usr/lib/systemd/systemd" ]; then
	system=systemd
elif [ -e "$root/sbin/openrc-run" ] || [ -e "$root/usr/sbin/openrc-run" ]; then
	system=openrc
fi

if [ -z "$root" ] && { dpkg-query -S /usr/bin/quantix-kvm-agent || rpm -qf /usr/bin/quantix-kvm-agent || apk info -W /usr/bin/quantix-kvm-agent; } >/dev/null 2>&1; then
	echo "the agent of this system belongs to a package: have the package manager do it" >&2
	exit 1
fi

# What awaits its confirmation would be half done for ever: nobody else can take it back. A script that ran was, by the agent's stop.
unfinished() {
	[ -n "$(ls -A "$root/var/lib/quantix-kvm/tx/open" 2>/dev/null)" ] || return 1
	echo "quantix-kvm-agent: a transaction is open, and what it changed could not be taken back any more: have it confirmed or rolled back (quantix-kvm-agent status), or remove /var/lib/quantix-kvm/tx/open to keep the guest as it is" >&2
}

if [ "${1:-}" = --uninstall ]; then
	case $system in
	systemd)
		if [ -z "$root" ] && [ -d /run/systemd/system ]; then systemctl stop quantix-kvm-agent.service || true; fi
		if unfinished; then
			if [ -z "$root" ] && [ -d /run/systemd/system ]; then systemctl start quantix-kvm-agent.service; fi
			exit 1
		fi
		for unit in $units; do
			systemctl ${root:+--root="$root"} disable "$unit" >/dev/null 2>&1 || true
			rm -f "$root/etc/systemd/system/$unit"
		done
		rm -f "$root/etc/systemd/system/quantix-kvm-port.target" "$root/etc/udev/rules.d/60-quantix-kvm-agent.rules"
		if [ -z "$root" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
		;;
	openrc)
		if [ -z "$root" ]; then
			rc-service quantix-kvm-agent stop || true
		fi
		if unfinished; then
			if [ -z "$root" ]; then rc-service quantix-kvm-agent start; fi
			exit 1
		fi
		if [ -z "$root" ]; then
			rc-update del quantix-kvm-agent default || true
			rc-update del quantix-kvm-agent-recover boot || true
		fi
		rm -f "$root/etc/init.d/quantix-kvm-agent" "$root/etc/init.d/quantix-kvm-agent-recover"
		rm -f "$root/etc/runlevels/default/quantix-kvm-agent" "$root/etc/runlevels/boot/quantix-kvm-agent-recover"
		;;
	esac
	rm -f "$root/usr/bin/quantix-kvm-agent"
	echo "removed; /etc/quantix-kvm and /var/lib/quantix-kvm are left"
	exit 0
fi

put 0755 quantix-kvm-agent /usr/bin/quantix-kvm-agent
mkdir -p "$root/etc/quantix-kvm/scripts.d" "$root/etc/quantix-kvm/pre-freeze.d" "$root/etc/quantix-kvm/post-thaw.d"
if [ ! -e "$root/etc/quantix-kvm/agent.yaml" ]; then put 0644 agent.yaml /etc/quantix-kvm/agent.yaml; fi
case $system in
systemd)
	new=yes # who disabled it is not overruled
	if [ -e "$root/etc/systemd/system/quantix-kvm-agent.service" ]; then new=; fi
	for unit in $units quantix-kvm-port.target; do put 0644 "systemd/$unit" "/etc/systemd/system/$unit"; done
	put 0644 systemd/60-quantix-kvm-agent.rules /etc/udev/rules.d/60-quantix-kvm-agent.rules
	if [ -n "$new" ]; then systemctl ${root:+--root="$root"} enable $units; fi
	if [ -z "$root" ] && [ -d /run/systemd/system ]; then
		systemctl daemon-reload
		udevadm control --reload && udevadm trigger --action=change --subsystem-match=virtio-ports || true
		if systemctl --quiet is-enabled quantix-kvm-agent.service; then systemctl restart quantix-kvm-agent.service; fi
	fi
	;;
openrc)
	new=yes
	if [ -e "$root/etc/init.d/quantix-kvm-agent" ]; then new=; fi
	for name in quantix-kvm-agent quantix-kvm-agent-recover; do put 0755 "openrc/$name" "/etc/init.d/$name"; done
	if [ -n "$new" ]; then
		mkdir -p "$root/etc/runlevels/boot" "$root/etc/runlevels/default"
		ln -sf /etc/init.d/quantix-kvm-agent-recover "$root/etc/runlevels/boot/"
		ln -sf /etc/init.d/quantix-kvm-agent "$root/etc/runlevels/default/"
	fi
	if [ -z "$root" ] && [ -e /etc/runlevels/default/quantix-kvm-agent ]; then rc-service quantix-kvm-agent restart; fi
	;;
none)
	echo "neither systemd nor OpenRC is here: have something start /usr/bin/quantix-kvm-agent and keep it running" >&2
	;;
esac
echo "installed: $("$here/quantix-kvm-agent" --version 2>/dev/null || echo quantix-kvm-agent)"
