#!/usr/bin/env bash
# nbdkit 1.32.5 (Debian 1.32.5-1): its file plugin writes zeroes by fallocate, in no time on ext4, XFS and
# btrfs, and does not offer FAST_ZERO, by which a client could ask for zeroes only where they are cheap.
# So a client with much to clear cannot tell this server from one that writes every byte.
#
# Seen: zero yes, fast-zero no
# shellcheck source=findings/lib.sh
. "$(dirname "$0")/lib.sh"
get nbdkit 1.32.5-1
get_nbdinfo
nbdkit=$root/usr/sbin/nbdkit
[[ -x $nbdkit ]] || nbdkit=$root/usr/bin/nbdkit
needs "$nbdkit"
truncate -s 1M "$root/disk"
"$nbdkit" -f -U "$root/socket" "$root"/usr/lib/*/nbdkit/plugins/nbdkit-file-plugin.so "$root/disk" >"$root/log" 2>&1 &
pids+=($!)
await "$root/socket"
uri="nbd+unix:///?socket=$root/socket"
expect "nbdkit 1.32.5, file plugin: WRITE_ZEROES" "$(can zero "$uri")" yes
expect "nbdkit 1.32.5, file plugin: FAST_ZERO" "$(can fast-zero "$uri")" no
exit "$failed"
