# What the findings share. It is sourced, and makes a temporary folder $root that goes at the end.
# shellcheck shell=bash
set -euo pipefail
root=$(mktemp -d)
pids=()
leave() {
    ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
    rm -rf "$root"
}
trap leave EXIT

cannot() { printf 'not tried: %s\n' "$*" >&2; exit 2; }

# get PACKAGE VERSION: unpacks it into $root.
get() {
    mkdir -p "$root/deb"
    (cd "$root/deb" && apt-get -o APT::Sandbox::User=root download "$1=$2" >/dev/null 2>&1) ||
        cannot "no mirror of this system has $1 $2 (any more)"
    dpkg-deb -x "$root/deb/$1"_*.deb "$root"
}

# needs PROGRAM: it must find its libraries, in $root or in the system.
export LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu
needs() {
    local lacks
    lacks=$(ldd "$1" | grep 'not found' || true)
    [[ -z $lacks ]] || cannot "${1##*/} lacks libraries: $lacks"
}

# nbdinfo tells an export's flags.
get_nbdinfo() {
    get libnbd0 1.14.2-1
    get libnbd-bin 1.14.2-1
    nbdinfo=$root/usr/bin/nbdinfo
    needs "$nbdinfo"
}

# can FLAG URI: yes or no.
can() {
    local status=0
    "$nbdinfo" --can "$1" "$2" || status=$?
    case $status in
    0) echo yes ;;
    2) echo no ;;
    *) echo "no answer" ;;
    esac
}

# await FILE: a server has made its socket.
await() {
    for _ in $(seq 100); do
        [[ -S $1 ]] && return
        sleep 0.1
    done
    cannot "no socket after ten seconds: $(cat "$root/log" 2>/dev/null)"
}

# expect WHAT GOT WANT
# shellcheck disable=SC2034 # whoever sources this ends with it
failed=0
expect() {
    printf '%-60s %s\n' "$1" "$2"
    [[ $2 = "$3" ]] || {
        printf '  has changed: it was %s\n' "$3"
        # shellcheck disable=SC2034
        failed=1
    }
}
