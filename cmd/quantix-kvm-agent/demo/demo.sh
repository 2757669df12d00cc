#!/usr/bin/env bash
# The demonstration behind "make demo": an agent on a private socket, acting on a scratch tree. Leaves nothing behind.
set -euo pipefail
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")"
work=$(mktemp -d)
agent=
finish() {
  if [ -n "$agent" ]; then kill "$agent" 2>/dev/null || true; wait "$agent" 2>/dev/null || true; fi
  rm -rf "$work"
}
trap finish EXIT

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
ctl() { "$bin/quantix-kvm-ctl" --socket "$work/agent.sock" "$@"; }
# Everything that a rollback must bring back: names, types, modes, links, times, content.
picture() { (cd "$work/root" && find . -printf '%p %y %m %l %T@ %s\n' | sort && find . -type f -print0 | sort -z | xargs -0r sha256sum); }

mkdir -p "$work/root/etc/app" "$work/root/srv" "$work/root/usr/lib/systemd/system"
printf 'listen = 80\n' >"$work/root/etc/app/app.conf"
printf '127.0.0.1 localhost\n' >"$work/root/etc/hosts"
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$work/root/etc/passwd"
printf 'root:x:0:\n' >"$work/root/etc/group"
(umask 077 && printf 'root:*:19000:0:99999:7:::\n' >"$work/root/etc/shadow" && printf 'root:*::\n' >"$work/root/etc/gshadow")

say 'the agent, on a private socket, acting on a scratch tree'
"$bin/quantix-kvm-agent" --device "unix:$work/agent.sock" --root "$work/root" --state "$work/state" \
  --config "$work/none.yaml" --log-level warn 2>"$work/log" &
agent=$!
for _ in $(seq 200); do [ -S "$work/agent.sock" ] && break; sleep 0.05; done
ctl ping -c 3

say 'telemetry'
ctl telemetry

say 'a provisioning script: what it would do'
cat "./provision.lua"
ctl run --dry-run "./provision.lua" -p site=demo.example -p port=8080

say 'the same script, done: one message there, one back'
ctl run "./provision.lua" -p site=demo.example -p port=8080

say 'again: nothing is left to change'
ctl run "./provision.lua" -p site=demo.example -p port=8080

say 'a script that fails half-way'
cat "./fails.lua"
picture >"$work/before"
status=0
ctl run "./fails.lua" || status=$?
[ "$status" -ne 0 ] || { echo 'demo: the failing script did not fail'; exit 1; }
picture >"$work/after"
if diff "$work/before" "$work/after"; then
  say 'the tree is byte for byte as it was before it'
else
  echo 'demo: the tree is not as it was'
  exit 1
fi
