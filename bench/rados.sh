#!/usr/bin/env bash
# rados.sh [OPTION...]: starts a Ceph cluster in memory on loopback, stores an image there, and runs build/release/bench/rados
# with these options.
set -uo pipefail
cd "$(dirname "$0")/.."
build=$(realpath "${UFFDA_BUILD:-build/release}")
. tests/clients/_ceph.sh
if [[ ! -e $build/plugins/uffda-rados.so ]] || ! ceph_can_run; then exec "$build/bench/rados" "$@"; fi
work=$(mktemp -d)
trap 'ceph_stop; rm -rf "$work"' EXIT
ceph_start "$work/ceph" || { printf 'rados.sh: %s\n' "$ceph_why" >&2 && exit 1; }
head -c 64M /dev/urandom >"$work/image"
"$build/uffda" put "$work/image" rados:uffda/image >/dev/null || exit 1
UFFDA_PLUGINS=$build/plugins "$build/bench/rados" --uri "rados:uffda/image?conf=$CEPH_CONF" "$@"
