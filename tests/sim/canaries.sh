#!/usr/bin/env bash
# The simulation finds what it is for: each known fault that the simulated build can have is found within a bound of
# seeds, by bytes that are wrong, not stored, not logged, or read while they are written, by a SIGBUS that has no reason, or by a wait without end, and its seed
# shows it again.
set -uo pipefail
sim=${UFFDA_BUILD:?}/tests/uffda_sim
seeds=3000
status=0
for canary in shown-before-filled evicts-pinned clean-before-written copied-before-protected \
  logged-despite-pins adopts-awaiting-as-clean forgets-messages adopts-without-wake; do
  found=$("$sim" --seeds "$seeds" --canary "$canary" | grep -E '^(seed|FAIL|ok) ')
  seed=$(sed -nE 's/^seed ([0-9]+): .*(wrong|not stored|lacks what was stored|asked for while|is in no answer|SIGBUS|does not end|took).*/\1/p' <<<"$found")
  if [[ -z $seed ]]; then
    printf 'FAIL %s is not found within %d seeds: %s\n' "$canary" "$seeds" "$found"
    status=1
  elif [[ $("$sim" --replay "$seed" --canary "$canary" | grep '^seed') != "$(grep '^seed' <<<"$found")" ]]; then
    printf 'FAIL %s: seed %d does not show it again\n' "$canary" "$seed"
    status=1
  else
    printf 'ok %s is found by seed %d\n' "$canary" "$seed"
  fi
done
exit "$status"
