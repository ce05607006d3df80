#!/bin/bash
# The exec shim by itself: shim_probe's cases on a plain file, on the shim with a page server made for tests (shim_server),
# with pages evicted all the time, with every request of the protocol refused, and as another user.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
shim=${UFFDA_BUILD:-$root/build/release}/libuffda-shim.so
[ -f "$shim" ] || { echo "skipped: no $shim"; exit 77; }

work=$(mktemp -d)
server=
finish() { [ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$work"; }
trap finish EXIT
chmod 755 "$work"
cp "$shim" "$work/shim.so"
for program in server probe; do  # copied: another user may not look into the build
  cp "$(dirname "$shim")/tests/clients/shim_$program" "$work/$program" || { echo "skipped: no shim_$program"; exit 77; }
done
size=$((16 * 1024 * 1024 + 2129))
"$work/probe" --make "$work/object" $size || exit 1

failed=0
# expect NAME WANTED-STATUS COMMAND...: its output is shown when it is not as wanted.
expect() {
  local name=$1 wanted=$2 status
  shift 2
  timeout 120 "$@" >"$work/out" 2>&1
  status=$?
  if [ $status = "$wanted" ]; then echo "ok   $name"; return; fi
  echo "FAIL $name: status $status, not $wanted"
  tail -n 20 "$work/out"
  failed=1
}

# Starts a server with these arguments and exports what the shim reads.
serve() {
  [ -z "$server" ] || { kill "$server" && wait "$server" 2>/dev/null; }
  rm -f "$work/ready"
  mkfifo "$work/ready"
  "$work/server" "$work/socket" $size "$@" >"$work/ready" &
  server=$!
  read -r _ <"$work/ready"
  shim_env=(env "LD_PRELOAD=$work/shim.so" "UFFDA_SHIM_SOCKET=$work/socket"
    "UFFDA_SHIM_MAPS=$(stat -c '%Hd:%Ld:%i:%s:0' "$work/object"):object")
}

expect "plain file" 0 "$work/probe" "$work/object"
expect "shim without a task" 0 env "LD_PRELOAD=$work/shim.so" "$work/probe" "$work/object"

probe=("$work/probe" "$work/object")
if ! [ -w /dev/userfaultfd ]; then
  echo "skipped: the rest needs /dev/userfaultfd"
  exit $((failed ? 1 : 77))
fi
serve
expect "served" 0 "${shim_env[@]}" "${probe[@]}" --served
expect "served, malloc of another size" 0 "${shim_env[@]}" MALLOC_MMAP_THRESHOLD_=4096 "${probe[@]}" --served
serve --evict
expect "served, evicting" 0 "${shim_env[@]}" "${probe[@]}" --served
for type in 1 16 3; do
  serve --refuse $type
  expect "request $type refused: the file itself" 0 "${shim_env[@]}" "${probe[@]}"
done
serve --refuse 3@1
expect "growth refused: as it was" 0 "${shim_env[@]}" "${probe[@]}" --served refused_growth
for type in 16@1 3@1; do
  serve --refuse $type
  expect "child refused ($type): no memory" 0 "${shim_env[@]}" "${probe[@]}" --served refused_child
done

# A user without rights: the server passes the device.
if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null; then
  user=(setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all)
  chmod 644 "$work/object"
  serve --evict
  expect "another user, the server's device" 0 "${user[@]}" "${shim_env[@]}" "${probe[@]}" --served
  serve --refuse 6
  expect "another user, no device: the file itself" 0 "${user[@]}" "${shim_env[@]}" "${probe[@]}"
fi
exit $failed
