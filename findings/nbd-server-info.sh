#!/usr/bin/env bash
# nbd-server 3.24 (Debian 1:3.24-1.1): NBD_OPT_INFO, with which a client asks what an export is like without
# choosing it, answers that the export has 0 bytes. NBD_OPT_GO of the same export answers its size. A client
# that asks first takes the export for empty; libnbd's nbdinfo shows "export-size: 0".
#
# Seen: NBD_OPT_INFO 0, NBD_OPT_GO 1048576
# shellcheck source=findings/lib.sh
. "$(dirname "$0")/lib.sh"
get nbd-server 1:3.24-1.1
needs "$root/bin/nbd-server"
command -v python3 >/dev/null || cannot "there is no python3"

cat >"$root/config" <<CONF
[generic]
    unixsock = $root/socket
[plain]
    exportname = $root/disk
CONF
truncate -s 1M "$root/disk"
"$root/bin/nbd-server" -C "$root/config" -p "$root/pid" >"$root/log" 2>&1 # it goes to the background
for _ in $(seq 100); do [[ -s $root/pid ]] && break; sleep 0.1; done
pids+=("$(cat "$root/pid")")
await "$root/socket"

# size OPTION: what the server answers.
size() {
    python3 - "$root/socket" "$1" <<'PY'
import socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(10)
s.connect(sys.argv[1])
def read(n):
    p = b""
    while len(p) < n:
        q = s.recv(n - len(p))
        if not q:
            sys.exit("the server has hung up")
        p += q
    return p
read(18)  # the greeting
option, name = int(sys.argv[2]), b"plain"
data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
s.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)
size = "nothing"
while True:
    _, _, kind, n = struct.unpack(">QIII", read(20))
    data = read(n)
    if kind == 3 and data[:2] == b"\0\0":  # NBD_REP_INFO with NBD_INFO_EXPORT
        size = struct.unpack(">Q", data[2:10])[0]
    elif kind != 3:
        break
print(size)
PY
}
expect "nbd-server 3.24: size by NBD_OPT_INFO" "$(size 6)" 0
expect "nbd-server 3.24: size by NBD_OPT_GO" "$(size 7)" 1048576
exit "$failed"
