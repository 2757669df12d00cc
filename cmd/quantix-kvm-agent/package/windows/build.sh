#!/bin/bash
# Builds the package of Windows with wixl: build.sh OUT VERSION LDFLAGS [ARCH]. ARCH is amd64, unless it is given, or arm64: wixl knows
# no such package, which differs from that of amd64 in its programs and in the platform that its summary names.
#
# With SIGN_CERT and SIGN_KEY (files in PEM) programs and package are signed by osslsigncode, with a time stamp of SIGN_TIMESTAMP
# (an address) where that is given.
set -eu -o pipefail

OUT=$(mkdir -p "$1" && cd "$1" && pwd)
version=$2 flags=$3 arch=${4:-amd64}
case $arch in
amd64) platform=x64 ;;
arm64) platform=Arm64 ;;
*)
	echo "no package for $arch" >&2
	exit 1
	;;
esac
cd "$(dirname "$0")"
root=../../../..
work=$OUT/package-windows-$arch
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT

# sign replaces a file by the signed one.
sign() {
	if [ -z "${SIGN_CERT:-}" ]; then return 0; fi
	osslsigncode sign -h sha256 -certs "$SIGN_CERT" -key "$SIGN_KEY" -n 'Quantix KVM guest agent' \
		${SIGN_TIMESTAMP:+-ts "$SIGN_TIMESTAMP"} -in "$1" -out "$1.signed" >/dev/null
	mv "$1.signed" "$1"
}

GOOS=windows GOARCH=$arch CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$flags" -o "$work/" \
	$root/cmd/quantix-kvm-agent $root/cmd/quantix-kvm-ctl
sign "$work/quantix-kvm-agent.exe"
sign "$work/quantix-kvm-ctl.exe"
# The configuration of Linux, with the words of Windows; Notepad of old wants CR LF.
sed -e 's|systemctl reload quantix-kvm-agent|restart the service QuantixKVMAgent|' \
	-e 's|/etc/quantix-kvm/\([a-z.-]*\)|C:\\ProgramData\\Quantix-KVM\\\1|g' \
	-e 's|Empty: stderr, which is the journal\.|Empty: Logs\\agent.log beside this file.|' \
	-e 's/$/\r/' ../agent.yaml >"$work/agent.yaml"
cp $root/builtins/all/OPS.md "$work/OPS.md"
cp $root/scripts/README.md "$work/GUIDE.md"
cp ../copyright "$work/copyright.txt"

number=${version%%[-+~]*} # three numbers are all that an MSI can have
# Each version is a product of its own, which is what makes an upgrade of the next one.
code=$(printf 'quantix-kvm-agent windows %s %s' "$arch" "$version" | sha256sum)
code="${code:0:8}-${code:8:4}-4${code:13:3}-a${code:17:3}-${code:20:12}"
msi=$OUT/quantix-kvm-agent_${version}_windows_$arch.msi
cp agent.wxs "$work/"
(cd "$work" && wixl --arch x64 -D Version="$number" -D ProductCode="$code" -o package.msi agent.wxs)
# Of the configuration's component: permanent (16), never overwritten (128), 64-bit (256).
msibuild "$work/package.msi" -q "UPDATE \`Component\` SET \`Attributes\` = 400 WHERE \`Component\` = 'Config'"
if [ "$platform" != x64 ]; then
	summary() { msiinfo suminfo "$work/package.msi" | sed -n "s/^$1: //p"; }
	msibuild "$work/package.msi" -s "$(summary Subject)" "$(summary Author)" "$platform;1033" "$(summary 'Revision number (UUID)')"
fi
mv "$work/package.msi" "$msi"
sign "$msi"
echo "created package: $msi"
