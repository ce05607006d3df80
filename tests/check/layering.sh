#!/usr/bin/env bash
# What can be said about the sources without compiling them: the include order, the core's ignorance of kinds, lengths,
# left-overs, paths of one machine, sleeps in tests, a reason beside each disabled check.
#
#   layering.sh              the self-test, then the tree this file stands in
#   layering.sh --tree DIR   one tree
#   layering.sh --self-test  proves on a small bad tree that every rule finds what it is for
set -uo pipefail
export LC_ALL=C

# Who may include whom: a file may include a lower rank, and its own directory.
declare -A rank=([base]=0 [os]=1 [mm]=2 [memtypes]=3 [sources]=3 [monitors]=3 [plugins]=4 [api]=4 [criu]=4 [modules]=5
  [server]=6 [fuse]=7 [qemu]=7 [exec]=8 [cli]=9)
readonly max_lines=600

failures=0
complain() { # RULE, then what was found on standard input
  local rule=$1 line
  while IFS= read -r line; do
    [[ -n $line ]] || continue
    printf '%s: %s\n' "$rule" "$line"
    failures=$((failures + 1))
  done
}

# The files of the tree: git's, with those not added yet; without git, all.
list_files() {
  if [[ -e .git ]]; then git ls-files -co --exclude-standard; else find . -type f -printf '%P\n'; fi |
    grep -Ev '^(third_party|vendor|build)/' | while IFS= read -r file; do [[ -f $file ]] && printf '%s\n' "$file"; done
}
pick() { grep -E "$1" <<<"$files"; }
search() { # FILES-PATTERN TEXT-PATTERN
  pick "$1" | tr '\n' '\0' | xargs -0 -r grep -nHE -- "$2" /dev/null
}

check_include_order() {
  local place file own target
  search '^src/.*\.(h|cpp|c)$' '^[[:space:]]*#[[:space:]]*include[[:space:]]*["<]' |
    while IFS= read -r place; do
      file=${place%%:*}
      own=${file#src/} own=${own%%/*}
      target=$(sed -E 's/.*include[[:space:]]*["<]([^">]*)[">].*/\1/' <<<"$place")
      target=${target#src/}
      [[ $target == ..* || $target == */../* ]] && printf '%s (write paths from src/)\n' "$place"
      if [[ $own == preload ]]; then # lives in foreign programs: libc, itself, and the words on the wire
        [[ $place == *'"'* && $target != preload/* && $target != server/handoff_wire.h && $target == */* ]] &&
          printf '%s (the shim shares only server/handoff_wire.h)\n' "$place"
        continue
      fi
      target=${target%%/*}
      [[ $target == preload ]] && printf '%s (nobody includes the shim)\n' "$place"
      [[ -n ${rank[$own]-} ]] || { printf '%s (src/%s has no place in the order)\n' "$place" "$own" && continue; }
      [[ -n ${rank[$target]-} && $target != "$own" ]] || continue
      ((rank[$target] < rank[$own])) || printf '%s (%s is below %s)\n' "$place" "$own" "$target"
    done
}

check_wire_header() { # shared with the shim and written for C
  search '^src/server/handoff_wire\.h$' '#[[:space:]]*include' | grep -Ev 'include <[a-z_/]+\.h>'
}

check_public_headers() {
  search '^include/' '#[[:space:]]*include[[:space:]]*"' | grep -Ev 'include "uffda/[a-z_]+\.h"'
  search '^include/' '#[[:space:]]*include[[:space:]]*<(base|os|mm|memtypes|sources|monitors|api|server|spdlog|CLI|nlohmann)/'
}

check_kinds() { search '^src/mm/' 'dynamic_cast|typeid\(|\bis_(anon|shmem|hugetlb|guest_memfd|file)\('; }

check_lines() {
  pick '^(src|include)/.*\.(h|hpp|c|cc|cpp)$' | tr '\n' '\0' | xargs -0 -r wc -l |
    awk -v max="$max_lines" '$2 != "total" && $1 > max {print $2 ": " $1 " lines"}'
}

readonly text='(\.(c|h|cc|cpp|hpp|sh|py|txt|cmake|md|json|in|map)|(^|/)(Makefile|run|\.clang-tidy|\.clang-format))$|^scripts/'
check_left_overs() { search "$text" '\b(TOD[O]|FIXM[E]|XX[X]|HAC[K])\b|[n]ot (yet )?implemented'; }
check_paths() { search "$text" '/(work|farm)/(main|shared|steering|in)\b|/(home|Users)/[a-z]+/|/tmp/uff[d]a-plan'; }
check_sleeps() { # in tests/sim time is simulated
  search '^tests/.*\.(h|cpp|c)$' 'sleep[_](for|until)|\b(u|nano)?sleep[(]' | grep -v '^tests/sim/'
}

check_tidy_reasons() { # a disabled check is `  - -name  # reason`
  search '^\.clang-tidy$' '^ *- *-[a-z]' | grep -vE '# *[^ ].{8,}'
  search '^\.clang-tidy$' '^Checks:.*[a-z]'
}
check_suppressions() { search '^(src|include|tests|bench|fuzz|examples)/.*\.(h|cpp|c)$' 'NOLINT(NEXTLINE|BEGIN)?([^(A-Z]|$)'; }

check_stray() { # what a test or a fuzzer dropped where it ran
  pick '(^|/)(crash|leak|oom|timeout)-[0-9a-f]{40}$|\.(state|core|orig|rej|log)$'
}

check_tree() {
  cd "$1" || exit 2
  files=$(list_files)
  failures=0
  complain 'include order' < <(check_include_order)
  complain 'wire header' < <(check_wire_header)
  complain 'public header' < <(check_public_headers)
  complain 'kind in the core' < <(check_kinds)
  complain 'too long' < <(check_lines)
  complain 'left-over' < <(check_left_overs)
  complain 'machine path' < <(check_paths)
  complain 'sleep in a test' < <(check_sleeps)
  complain 'disabled without a reason' < <(check_tidy_reasons)
  complain 'suppression without a name' < <(check_suppressions)
  complain 'dropped by a run' < <(check_stray)
  return $((failures > 0))
}

# --- the self-test --------------------------------------------------------------------------------------------------
put() { mkdir -p "$(dirname "$1")" && printf '%s\n' "${@:2}" >"$1"; }

expect() { # RULE FILE LINE...: alone in a tree, the file breaks exactly this rule
  local tree=$scratch/tree rule=$1 found
  rm -rf "$tree" && mkdir "$tree"
  put "$tree/src/mm/object.cpp" '#include "mm/object.h"' '#include "os/memfd.h"' '#include <vector>'
  put "$tree/$2" "${@:3}"
  found=$(check_tree "$tree")
  if [[ $rule == none ]]; then
    [[ -z $found ]] || { printf 'self-test: %s was refused: %s\n' "$2" "$found" && bad=1; }
  elif [[ $found != "$rule: "* || $(wc -l <<<"$found") != 1 ]]; then
    printf 'self-test: %s should break the rule "%s", and this was found: %s\n' "$2" "$rule" "${found:-nothing}"
    bad=1
  fi
}

self_test() {
  local scratch bad=0 word
  scratch=$(mktemp -d)
  expect none src/sources/file.cpp '#include "mm/object.h"' '#include "base/page_source.h"' '#include "uffda/units.h"'
  expect 'include order' src/mm/a.cpp '#include "memtypes/shmem.h"'
  expect 'include order' src/base/a.h '#include <os/memfd.h>'
  expect 'include order' src/sources/a.cpp '#include "memtypes/shmem.h"'
  expect 'include order' src/server/a.cpp '#include "cli/exec.h"'
  expect 'include order' src/server/a.cpp '#include "exec/child.h"'
  expect 'include order' src/mm/a.cpp '#include "../os/memfd.h"'
  expect 'include order' src/cli/a.cpp '#include "preload/shim.h"'
  expect 'include order' src/preload/a.cpp '#include "base/result.h"'
  expect 'include order' src/misc/a.cpp '#include <vector>'
  expect 'include order' src/sources/a.cpp '#include "plugins/nbd/source.h"'
  expect none src/plugins/nbd/a.cpp '#include "plugins/nbd/source.h"' '#include "sources/plugin.h"'
  expect none src/preload/a.cpp '#include "server/handoff_wire.h"' '#include "preload/lock.h"' '#include <sys/mman.h>'
  expect none src/exec/a.cpp '#include "fuse/host.h"' '#include "server/client.h"'
  expect 'wire header' src/server/handoff_wire.h '#include "base/result.h"'
  expect 'public header' include/uffda/a.h '#include "mm/object.h"'
  expect none include/uffda/a.h '#include "uffda/units.h"'
  expect 'kind in the core' src/mm/a.cpp 'auto* s = dynamic_cast<Shmem*>(t);'
  expect 'kind in the core' src/mm/a.h 'if (type.is_anon()) return;'
  expect none src/memtypes/a.cpp 'bool is_anon();'
  expect 'too long' src/os/a.cpp "$(seq 601)"
  expect none src/os/a.cpp "$(seq 600)"
  for word in TOD''O FIXM''E XX''X HAC''K 'not 'implemented; do expect 'left-over' src/os/a.cpp "// $word: later"; done
  expect 'machine path' scripts/a 'cd /wor''k/main'
  expect 'machine path' docs/a.md 'see /hom''e/jane/notes'
  expect 'sleep in a test' tests/unit/a.cpp 'std::this_thread::sleep''_for(1s);'
  expect 'sleep in a test' tests/unit/a.cpp 'usleep''(10);'
  expect none tests/sim/a.cpp 'sleep''_for(10ms);'
  expect 'disabled without a reason' .clang-tidy 'Checks:' '  - bugprone-*' '  - -bugprone-easily-swappable-parameters'
  expect none .clang-tidy 'Checks:' '  - bugprone-*' '  - -bugprone-branch-clone  # short switches read better so'
  expect 'suppression without a name' src/os/a.cpp 'int x;  // NOLIN''T'
  expect none src/os/a.cpp 'int x;  // NOLINT(bugprone-x): why'
  expect 'dropped by a run' "crash-$(printf '0%.0s' {1..40})" 'bytes'
  expect 'dropped by a run' local-mapped-0-verify.state 'bytes'
  expect none fuzz/corpus/pack/crash_of_a_head 'bytes'
  rm -rf "$scratch"
  ((bad == 0)) && printf 'self-test: every rule finds what it is for\n'
  return "$bad"
}

case ${1-} in
  --self-test) self_test ;;
  --tree) check_tree "${2:?a directory}" ;;
  '') self_test && check_tree "$(dirname "$0")/../.." ;;
  *) printf 'usage: layering.sh [--self-test | --tree DIR]\n' >&2 && exit 2 ;;
esac
