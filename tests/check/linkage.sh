#!/usr/bin/env bash
# The command starts with few shared objects, and the shim needs libc alone and exports its hooks and nothing else.
set -uo pipefail
build=${UFFDA_BUILD:-build/release}
bad=0
wrong() { printf '%s\n' "$*" && bad=1; }
needed() { readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }

if [[ ! -x $build/uffda || ! -f $build/libuffda-shim.so ]]; then
  printf 'the command and the shim are not built\n'
  exit 77
fi

# libzstd: packs are what is mapped most, and it needs nothing but libc.
while IFS= read -r object; do
  [[ $object =~ ^(liburing\.so\.2|libzstd\.so\.1|libfuse3\.so\.3|libseccomp\.so\.2|libfmt\.so\.9|libstdc\+\+\.so\.6|libm\.so\.6|libgcc_s\.so\.1|libc\.so\.6|ld-linux-x86-64\.so\.2)$ ]] ||
    wrong "uffda: needs $object: a source with a library of its own is a module"
done < <(needed "$build/uffda")

while IFS= read -r object; do
  [[ $object =~ ^(libc\.so\.6|ld-linux-x86-64\.so\.2)$ ]] || wrong "shim: needs $object"
done < <(needed "$build/libuffda-shim.so")

# Everything the version script names as global, in one list.
hooks=$(sed -n '/global:/,/local:/p' src/preload/shim.map | sed -E 's/#.*//; s/global:|local:.*//g' | tr -s ' ;\n' '\n' | sed '/^$/d; /[{}*]/d' | sort -u)
exported=$(nm -D --defined-only "$build/libuffda-shim.so" | awk '$2 != "A" {sub(/@.*/, "", $3); print $3}' | sort -u)
extra=$(comm -13 <(printf '%s\n' "$hooks") <(printf '%s\n' "$exported"))
lacking=$(comm -23 <(printf '%s\n' "$hooks") <(printf '%s\n' "$exported"))
[[ -z $extra ]] || wrong "shim: exports what shim.map does not name: $extra"
[[ -z $lacking ]] || wrong "shim: shim.map names what does not exist: $lacking"
nm -D --undefined-only "$build/libuffda-shim.so" | grep -E ' (_Z|__cxa_(throw|guard|pure)|__gxx)' && wrong "shim: uses the C++ runtime"
exit "$bad"
