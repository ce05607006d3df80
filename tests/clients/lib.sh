# Shared by the exec_*.sh scripts: where the command is, a directory to work in, and how a result is told.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
UFFDA_BUILD=${UFFDA_BUILD:-$root/build/release}
UFFDA=${UFFDA:-$UFFDA_BUILD/uffda}
export LC_ALL=C.UTF-8

skip() { echo "skipped: $1"; exit 77; }

[ -x "$UFFDA" ] || skip "no $UFFDA"
work=$(mktemp -d)
chmod 755 "$work"
mkdir -m 700 "$work/run"
export XDG_RUNTIME_DIR=$work/run  # where exec puts its sockets
background=()
finish() {
  local pid
  for pid in ${background[@]+"${background[@]}"}; do kill "$pid" 2>/dev/null; done
  wait 2>/dev/null
  huge_pages_back
  rm -rf "$work"
}
trap finish EXIT

failed=0
count=0
ok() { count=$((count + 1)); echo "ok   $1"; }
bad() { count=$((count + 1)); failed=1; echo "FAIL $1${2:+: $2}"; }
# same NAME WANTED GOT
same() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1" "wanted '$2', got '$3'"; fi; }
# contains NAME TEXT FILE
contains() {
  if grep -qF -- "$2" "$3"; then ok "$1"; else bad "$1" "no '$2' in:"; sed 's/^/     /' "$3" | head -n 20; fi
}
conclude() { echo "$count checks"; exit $failed; }

# wait_until COMMAND...: until it succeeds. The time limit is a hang detector, not a measure.
wait_until() {
  local limit=$((SECONDS + 60))
  until "$@"; do
    [ $SECONDS -lt $limit ] || { bad "waiting for: $*"; return 1; }
    read -r -t 0.02 _ <> <(:) || true
  done
}

# huge_pages COUNT: so many of 2 MiB are free, and for this script alone, until huge_pages_back or its end. False: they
# cannot be had. What somebody else has reserved and left does not count.
huge_pool=/sys/kernel/mm/hugepages/hugepages-2048kB
huge_pages() {
  [ -w $huge_pool/nr_hugepages ] || return 1
  if [ -z "${huge_before-}" ]; then
    exec {huge_turn}> /tmp/uffda-test-huge-pages.lock && flock -w 120 "$huge_turn" || return 1  # as tests/support/huge_pages.cpp
    huge_before=$(< $huge_pool/nr_hugepages)
  fi
  local spoken=$(($(< $huge_pool/nr_hugepages) - $(< $huge_pool/free_hugepages) + $(< $huge_pool/resv_hugepages)))
  echo $((spoken + $1)) > $huge_pool/nr_hugepages
  [ "$(< $huge_pool/nr_hugepages)" -eq $((spoken + $1)) ]
}
huge_pages_back() {
  [ -n "${huge_before-}" ] || return 0
  echo "$huge_before" > $huge_pool/nr_hugepages
  exec {huge_turn}>&-
  huge_before=
}

# can_exec: nothing of this is testable where neither a namespace nor a FUSE mount is allowed.
can_exec() {
  [ -r /dev/fuse ] && [ -w /dev/fuse ] && unshare -m true 2>/dev/null ||
    skip "needs /dev/fuse and the right to make a mount namespace"
}

# make_data FILE BYTES: random bytes with a run of zeroes in it, the same for the same size.
make_data() {
  python3 - "$1" "$2" <<'PY'
import random, sys
size = int(sys.argv[2])
data = bytearray(random.Random(size).randbytes(size))
data[size // 3:size // 3 + size // 8] = bytes(len(data[size // 3:size // 3 + size // 8]))
open(sys.argv[1], "wb").write(data)
PY
}
