#!/usr/bin/env bash
# What the author of a module does: with an installed uffda and nothing of its tree, the commands of docs/modules.md, and
# every module of modules/ built, checked and used. Two modules that break the contract are told from those that keep it.
set -uo pipefail
build=$(realpath "${UFFDA_BUILD:-build/release}")
root=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
prefix=$scratch/installed
log=$scratch/log
bad=0
wrong() { printf 'FAIL %s\n' "$*" && bad=1; }
if [[ ! -e /dev/fuse ]]; then
  printf 'there is no /dev/fuse, which exec needs\n'
  exit 77
fi
cmake --install "$build" --prefix "$prefix" >"$log" 2>&1 || { cat "$log" && exit 1; }
PKG_CONFIG_PATH=$(find "$prefix" -name uffda.pc -printf '%h')
export PKG_CONFIG_PATH PATH=$prefix/bin:$PATH
mkdir "$scratch/work" "$scratch/blocks"
cd "$scratch/work" || exit 1

# --- the page ---------------------------------------------------------------------------------------------------------
awk -v out="$scratch/blocks" '/^```sh$/ {name = sprintf("%s/%03d.sh", out, NR); next} /^```/ {name = ""} name {print > name}' \
  "$root/docs/modules.md"
blocks=("$scratch"/blocks/*.sh)
((${#blocks[@]} >= 4)) || wrong "only ${#blocks[@]} blocks of commands were found in docs/modules.md"
for block in "${blocks[@]}"; do
  line=$((10#$(basename "$block" .sh)))
  if timeout 120 bash -euo pipefail "$block" >"$log" 2>&1; then
    printf 'ok docs/modules.md, the block at line %s\n' "$line"
  else
    wrong "docs/modules.md, the block at line $line"
    sed 's/^/  | /' "$log"
  fi
done
said=$(uffda exec --module ./counter.so --map "$PWD/pages=mod:counter?pages=300" -- od -A n -t u1 -j 409600 -N 1 pages 2>&1)
[[ ${said//[[:space:]]/} == 100 ]] && printf 'ok a program reads what the module says\n' || wrong "a program reads $said instead of 100"

# --- the examples -------------------------------------------------------------------------------------------------------
flags=$(pkg-config --cflags uffda)
examples=0
for source in "$(pkg-config --variable=modulesdir uffda)"/*.c{,pp}; do
  name=$(basename "$source") module=./$(basename "${source%.*}").so
  examples=$((examples + 1))
  (($(wc -l <"$source") < 150)) || wrong "$name has 150 lines or more"
  warnings=(-O2 -Wall -Wextra -Wpedantic -Werror -fPIC -shared)
  # shellcheck disable=SC2086  # the flags are words
  case $name in
    *.c) gcc -std=c11 "${warnings[@]}" $flags "$source" -o "$module" ;;
    *) g++ -std=c++20 "${warnings[@]}" $flags "$source" -o "$module" ;;
  esac >"$log" 2>&1 || { cat "$log" && wrong "$name does not compile" && continue; }
  uffda module check "$module" >"$log" 2>&1 && uffda module check --isolate "$module" >>"$log" 2>&1
  status=$?
  if grep -q 'memfd_secret is needed' "$log"; then
    printf 'skip %s: this kernel has no memfd_secret\n' "$name"
  elif ((status == 0)) && grep -qE '^[0-9]+ passed, 0 failed' "$log"; then
    printf 'ok %s keeps the contract, isolated, too\n' "$name"
  else
    cat "$log"
    wrong "$name does not keep the contract"
  fi
done
((examples >= 3)) || wrong "only $examples examples were installed"

# --- what is refused ----------------------------------------------------------------------------------------------------
ends() { # WHAT STATUS TEXT COMMAND...
  local what=$1 status=$2 text=$3 got
  shift 3
  "$@" >"$log" 2>&1
  got=$?
  if ((got == status)) && grep -qF -- "$text" "$log"; then printf 'ok %s\n' "$what"; else
    cat "$log"
    wrong "$what: status $got, not $status, or without: $text"
  fi
}
sed 's/memset((char \*)buffer + done/if (length < 1 << 20) memset((char *)buffer + done/' counter.c >unfilled.c
sed 's/return (int64_t)length;/return (int64_t)length + 1;/' counter.c >boasting.c
sed 's/UFFDA_HEADER(struct uffda_source)/{sizeof(struct uffda_source), 99}/' counter.c >future.c
# Built against an older header, whose struct ended before fetch_async: what stands behind it is not the host's to read.
sed -e 's/UFFDA_HEADER(struct uffda_source)/{offsetof(struct uffda_source, fetch_async), UFFDA_MODULE_VERSION}/' \
  -e 's/    .fetch = counter_fetch,/&\n    .fetch_async = (void (*)(void *, const struct uffda_fetch *))(uintptr_t)16,/' \
  -e 's/#include <uffda-module.h>/&\n#include <stddef.h>/' counter.c >older.c
# Built against newer ones, with a field more: not used, and used.
for later in 0 1; do
  sed -e "s/registry->add_source(registry, &counter)/registry->add_source(registry, \&newer.counter)/" \
    -e "s/^int uffda_module_register.*/static struct { struct uffda_source counter; uint64_t later; } newer = {.later = $later};\n&/" \
    -e 's/{ return registry/{ newer.counter = counter; newer.counter.header.size = sizeof newer; return registry/' \
    counter.c >newer$later.c
done
for name in unfilled boasting future older newer0 newer1; do
  # shellcheck disable=SC2086  # the flags are words
  gcc -std=c11 -O2 -fPIC -shared $flags "$name.c" -o "$name.so" || wrong "$name.c does not compile"
done
ends 'a module that does not fill its buffer fails' 1 'FAIL' uffda module check ./unfilled.so mod:counter?pages=256
ends 'a module that reports too many bytes fails' 1 'module boasting.so, source counter: fetch: it reported' uffda module check ./boasting.so
ends 'a module of another version is refused' 1 'interface version 99' uffda module check ./future.so
ends 'a module with an older, smaller struct is used' 0 ' passed, 0 failed' uffda module check ./older.so
ends 'a module with a newer, larger struct is used' 0 ' passed, 0 failed' uffda module check ./newer0.so
ends 'unless it needs what this host does not know' 1 'a newer uffda is needed' uffda module check ./newer1.so
ends 'a shared object that is no module is refused' 1 'uffda_module_register' uffda module check "$(gcc -print-file-name=libm.so.6)"
ends 'a file that is not there is refused' 1 'cannot open' uffda module check ./nothing.so
ends 'check without a file is a wrong use' 2 'uffda module check FILE' uffda module check
ends 'a source that no module has' 1 'no loaded module has this source; there are counter' \
  uffda serve --module ./counter.so --export a=mod:other --socket "$scratch/socket"
ends 'a source without --module' 1 'give --module FILE' uffda serve --export a=mod:counter --socket "$scratch/socket"
ends 'a parameter that the module does not take' 1 'pages' \
  uffda serve --module ./counter.so --export 'a=mod:counter?paces=1' --socket "$scratch/socket"
ends 'a module twice' 1 'is there already' \
  uffda serve --module ./counter.so --module ./counter.so --export 'a=mod:counter?pages=1' --socket "$scratch/socket"
ends 'a module that cannot open its source says why' 1 'give pages=NUMBER' \
  uffda serve --module ./counter.so --export a=mod:counter --socket "$scratch/socket"
exit "$bad"
