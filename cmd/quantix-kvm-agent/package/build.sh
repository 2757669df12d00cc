#!/bin/bash
# Builds the packages of agent and ctl, and a tarball of both: build.sh OUT ARCH VERSION LDFLAGS [PACKAGER...]. A packager is deb, rpm,
# apk or tar; without one all are built. The same sources give the same bytes: all times are those of SOURCE_DATE_EPOCH.
set -eu -o pipefail

OUT=$(mkdir -p "$1" && cd "$1" && pwd)
export ARCH=$2 VERSION=$3
flags=$4
export GOAMD64=v1 # runs on every amd64 processor
shift 4
if [ $# = 0 ]; then set -- deb rpm apk tar; fi
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
cd "$(dirname "$0")"
work=$OUT/package-$ARCH
rm -rf "$work"
mkdir -p "$work/completion" "$work/doc" "$work/host"

GOOS=linux GOARCH=$ARCH CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$flags" -o "$work/" ../../quantix-kvm-agent ../../quantix-kvm-ctl

# Completions and manual pages are the programs' own words, which are the same for every processor.
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$flags" -o "$work/host/" ../../quantix-kvm-agent ../../quantix-kvm-ctl
for shell in bash zsh fish; do
	"$work/host/quantix-kvm-ctl" completion "$shell" >"$work/completion/$shell"
done
for name in agent ctl; do
	mkdir -p "$work/$name/man"
	"$work/host/quantix-kvm-$name" manual "$work/$name/man"
	gzip -9n "$work/$name/man/"*
done

date=$(date -u -R -d "@$SOURCE_DATE_EPOCH")
for name in agent ctl; do
	mkdir -p "$work/$name"
	cp -r "$work/doc" "$work/$name/"
	printf 'quantix-kvm-%s (%s) unstable; urgency=medium\n\n  * Built from the sources of this version.\n\n -- Quantix KVM <agent@quantix-kvm.invalid>  %s\n' "$name" "$VERSION" "$date" |
		gzip -9n >"$work/$name/doc/changelog.gz"
	cp copyright "$work/$name/doc/copyright"
	ln -f "$work/quantix-kvm-$name" "$work/$name/quantix-kvm-$name"
	if [ "$name" = ctl ]; then cp -r "$work/completion" "$work/$name/"; fi
	for packager in "$@"; do
		if [ "$packager" = tar ]; then continue; fi
		OUT="$work/$name" go tool nfpm package --config "$name-nfpm.yaml" --packager "$packager" --target "$OUT"
	done
done
case " $* " in *" tar "*)
	tree=quantix-kvm-agent-$VERSION
	mkdir -p "$work/$tree/systemd" "$work/$tree/man" "$work/$tree/completion"
	cp tarball/install.sh agent.yaml copyright "$work/quantix-kvm-agent" "$work/quantix-kvm-ctl" "$work/$tree/"
	cp -r openrc "$work/$tree/"
	cp quantix-kvm-agent.service quantix-kvm-agent-recover.service quantix-kvm-port.target 60-quantix-kvm-agent.rules "$work/$tree/systemd/"
	cp "$work"/agent/man/* "$work"/ctl/man/* "$work/$tree/man/"
	cp "$work"/completion/* "$work/$tree/completion/"
	tar -C "$work" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u+rwX,go=rX -cf - "$tree" |
		gzip -9n >"$OUT/$tree-linux-$ARCH.tar.gz"
	;;
esac
rm -rf "$work"
