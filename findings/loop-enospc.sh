#!/usr/bin/env bash
# Linux 6.18: a loop device whose file is on a full file system takes writes into the page cache. The
# first fdatasync(2) of the device answers EIO. The next one, on the same descriptor, answers OK,
# although what was written is lost. Who asks again after an error, or opens the device anew, is told
# that all is well. It needs root: a mount namespace with a tmpfs of 8 MiB, and a loop device.
#
# Seen with 6.18.44: written 25165824, fdatasync EIO, then OK
set -euo pipefail
if [[ ${1:-} != inside ]]; then
    ((EUID == 0)) || { echo "not tried: it needs root" >&2; exit 2; }
    command -v python3 >/dev/null || { echo "not tried: there is no python3" >&2; exit 2; }
    exec unshare --mount bash "$0" inside
fi
dir=$(mktemp -d)
mount -t tmpfs -o size=8M tmpfs "$dir"
truncate -s 32M "$dir/disk"
dev=$(losetup --find --show "$dir/disk") || { echo "not tried: no loop device" >&2; exit 2; }
trap 'losetup -d "$dev"; umount "$dir"; rmdir "$dir"' EXIT
got=$(python3 - "$dev" <<'PY'
import errno, os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
written = sum(os.write(fd, os.urandom(1 << 20)) for _ in range(24))
def sync():
    try:
        os.fdatasync(fd)
        return "OK"
    except OSError as e:
        return errno.errorcode[e.errno]
print("written %d, fdatasync %s, then %s" % (written, sync(), sync()))
PY
)
printf 'Linux %s: %s\n' "$(uname -r)" "$got"
[[ $got = "written 25165824, fdatasync EIO, then OK" ]] || { echo "  has changed"; exit 1; }
