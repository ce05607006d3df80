#!/bin/bash
# shim_probe under the real command: every way of mapping PATH shows the source's bytes, as memory of the server where that
# is allowed and through FUSE where it is not.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
can_exec
[ -f "$UFFDA_BUILD/libuffda-shim.so" ] || skip "no $UFFDA_BUILD/libuffda-shim.so"
[ -w /dev/userfaultfd ] || skip "needs /dev/userfaultfd"

cp "$UFFDA_BUILD/tests/clients/shim_probe" "$work/probe" || skip "no shim_probe"
"$work/probe" --make "$work/object" $((16 * 1024 * 1024 + 2129)) || exit 1
chmod 755 "$work/probe"
chmod 644 "$work/object"

# expect NAME COMMAND...: its output is shown when it fails.
expect() {
  local name=$1
  shift
  if timeout 200 "$@" > "$work/out" 2>&1; then ok "$name"; else bad "$name" "status $?"; tail -n 20 "$work/out"; fi
}
run=("$UFFDA" exec --map "$work/shown=file:$work/object")

expect "as root, memory of the server" "${run[@]}" -- "$work/probe" "$work/shown" --served
expect "pages evicted all the time" "${run[@]}" --budget 4M -- "$work/probe" "$work/shown" --served
expect "without the shim, FUSE" "${run[@]}" --no-preload -- "$work/probe" "$work/shown"

# As another user, in a mount namespace that has device files of its own.
if [ "$(id -u)" = 0 ] && command -v setpriv > /dev/null; then
  mkdir -m 700 "$work/home"
  chown 65534:65534 "$work/home"
  chmod 711 "$work/run"
  cat > "$work/as_user" <<'S'
set -e
cd "$1"
mknod fuse c 10 229
mount --bind fuse /dev/fuse
if [ "$2" = device ]; then
  mknod userfaultfd c 10 257
  chmod 666 userfaultfd
  mount --bind userfaultfd /dev/userfaultfd
fi
chmod 666 fuse
shift 2
exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all "$@"
S
  as_user() {
    rm -f "$work/devices"/*
    mkdir -p "$work/devices"
    unshare -m bash "$work/as_user" "$work/devices" "$@"
  }
  if as_user device test -w /dev/fuse 2> /dev/null; then
    export -f as_user
    export work
    run=(env "XDG_RUNTIME_DIR=$work/home" "$UFFDA" exec --map "$work/home/shown=file:$work/object")
    expect "as a user, memory of the server" \
      bash -c 'as_user device "$@"' - "${run[@]}" -- "$work/probe" "$work/home/shown" --served
    expect "as a user without userfaultfd, FUSE" \
      bash -c 'as_user none "$@"' - "${run[@]}" -- "$work/probe" "$work/home/shown"
    same "which is said once" 1 "$(grep -c 'may not open /dev/userfaultfd' "$work/out")"
  fi
fi
conclude
