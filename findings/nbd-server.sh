#!/usr/bin/env bash
# nbd-server 3.24 (Debian 1:3.24-1.1): an export as the manual's first example has it, a name and a file,
# has no FLUSH. A client that flushes cannot make its writes stable, and one that takes the lack of FLUSH
# for a store without a cache is wrong: the writes are in the host's page cache. "flush = true" offers it.
#
# An export that is "temporary", which by the manual gives each connection a file of its own, claims
# CAN_MULTI_CONN: that what is written and flushed on one connection is seen on all of them.
#
# Seen: flush no; with flush = true yes; multi-conn of the temporary export yes
# shellcheck source=findings/lib.sh
. "$(dirname "$0")/lib.sh"
get nbd-server 1:3.24-1.1
get_nbdinfo
needs "$root/bin/nbd-server"
command -v python3 >/dev/null || cannot "there is no python3"

port=$((20000 + RANDOM % 20000))
cat >"$root/config" <<CONF
[generic]
    listenaddr = 127.0.0.1
    port = $port
[plain]
    exportname = $root/disk
[flushes]
    exportname = $root/disk
    flush = true
[temp]
    exportname = $root/temp
    temporary = true
    filesize = 1048576
    flush = true
CONF
truncate -s 1M "$root/disk"
"$root/bin/nbd-server" -C "$root/config" -p "$root/pid" >"$root/log" 2>&1 # it goes to the background
for _ in $(seq 100); do [[ -s $root/pid ]] && break; sleep 0.1; done
pids+=("$(cat "$root/pid")")
uri() { echo "nbd://127.0.0.1:$port/$1"; }

expect "nbd-server 3.24: FLUSH of an export by default" "$(can flush "$(uri plain)")" no
expect "nbd-server 3.24: FLUSH with flush = true" "$(can flush "$(uri flushes)")" yes
expect "nbd-server 3.24: CAN_MULTI_CONN of a temporary export" "$(can multi-conn "$(uri temp)")" yes
exit "$failed"
