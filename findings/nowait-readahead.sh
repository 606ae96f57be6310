#!/usr/bin/env bash
# Linux 6.18, ext4: preadv2(2) with RWF_NOWAIT of what is not in the page cache answers EAGAIN, and begins to
# read it all the same. Who asks again a moment later gets the data, although nobody has waited for it. So the
# flag is no way to ask for nothing but what is cached.
#
# Seen with 6.18.44: EAGAIN, then 4096
set -euo pipefail
command -v python3 >/dev/null || { echo "not tried: there is no python3" >&2; exit 2; }
dir=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
trap 'rm -rf "$dir"' EXIT
[[ $(stat -f -c %T "$dir") = ext2/ext3 ]] || { echo "not tried: $dir is not on ext4 (TMPDIR=...)" >&2; exit 2; }
got=$(python3 - "$dir/file" <<'PY'
import errno, os, sys, time
with open(sys.argv[1], "wb") as f:
    f.write(os.urandom(1 << 20))
    f.flush()
    os.fsync(f.fileno())
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
time.sleep(0.5)  # nobody else reads it
def read():
    try:
        return os.preadv(fd, [bytearray(4096)], 0, os.RWF_NOWAIT)
    except OSError as e:
        return errno.errorcode[e.errno]
first = read()
for _ in range(500):
    time.sleep(0.01)
    then = read()
    if then != "EAGAIN":
        break
print("%s, then %s" % (first, then))
PY
)
printf 'Linux %s: %s\n' "$(uname -r)" "$got"
[[ $got = "EAGAIN, then 4096" ]] || { echo "  has changed"; exit 1; }
