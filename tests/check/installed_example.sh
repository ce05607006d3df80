#!/usr/bin/env bash
# What a user of the library does: install into a prefix, build examples/ against it with find_package, run them; then
# the same sources through pkg-config. The prefix is moved first: nothing may point into the build tree.
set -euo pipefail
build=$(realpath "${UFFDA_BUILD:-build/release}")
if [[ ! -f examples/CMakeLists.txt ]]; then
  printf 'examples/ has no CMakeLists.txt\n'
  exit 77
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
prefix=$scratch/moved
log=$scratch/log

quietly() {
  if ! "$@" >"$log" 2>&1; then
    cat "$log"
    printf 'failed: %s\n' "$*"
    exit 1
  fi
}

quietly cmake --install "$build" --prefix "$scratch/first"
mv "$scratch/first" "$prefix"
for file in bin/uffda lib/uffda/libuffda-shim.so include/uffda/result.h; do
  [[ -f $prefix/$file ]] || { printf 'not installed: %s\n' "$file" && exit 1; }
done
quietly "$prefix/bin/uffda" version

quietly cmake -S examples -B "$scratch/examples" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefix" \
  -DCMAKE_CXX_COMPILER=g++
grep -q "^uffda_DIR:PATH=$prefix/" "$scratch/examples/CMakeCache.txt" || { printf 'another uffda was found\n' && exit 1; }
quietly ninja -C "$scratch/examples"
quietly ctest --test-dir "$scratch/examples" --no-tests=error --output-on-failure
printf 'find_package: %s\n' "$(sed -n 's/^100% tests passed.*out of \([0-9]*\)/\1 examples run/p' "$log")"

pc=$(find "$prefix" -name uffda.pc -printf '%h')
flags=$(PKG_CONFIG_PATH=$pc pkg-config --cflags --libs uffda)
built=0
for source in examples/*.cpp; do
  name=$(basename "$source" .cpp)
  program=$(find "$scratch/examples" -type f -name "$name" -perm -u+x | head -n 1)
  [[ -n $program ]] || continue
  # shellcheck disable=SC2086  # the flags are words
  quietly g++ -std=c++23 -O1 "$source" -o "$program" $flags
  built=$((built + 1))
done
((built > 0)) || { printf 'no example has a program of its name\n' && exit 1; }
quietly ctest --test-dir "$scratch/examples" --no-tests=error --output-on-failure
printf 'pkg-config: %d built and run\n' "$built"
