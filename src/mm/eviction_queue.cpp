#include "mm/eviction_queue.h"

#include <algorithm>

namespace uffda {
namespace {

// Shares of all that is queued. Measured: bench/eviction, docs/design/budget.md.
constexpr std::uint64_t kFreshShare = 8;      // an eighth
constexpr std::uint64_t kProbationShare = 4;  // a quarter
constexpr std::uint64_t kMostAtOnce = 64;     // folios that go on probation together

}  // namespace

void EvictionQueue::push(List& list, FolioRange run) {
  if (run.empty()) return;
  list.folios += run.count;
  // A run that follows on the last one is one with it, so that they go together.
  if (!list.runs.empty() && list.runs.back().end() == run.first && list.runs.back().count + run.count <= kMostAtOnce) {
    list.runs.back().count += run.count;
  } else {
    list.runs.push_back(run);
  }
}

FolioRange EvictionQueue::pop(List& list, std::uint64_t most) {
  if (list.runs.empty()) return {};
  FolioRange& oldest = list.runs.front();
  const FolioRange taken{.first = oldest.first, .count = std::min(oldest.count, most)};
  list.folios -= taken.count;
  oldest = {.first = taken.end(), .count = oldest.count - taken.count};
  if (oldest.empty()) list.runs.pop_front();
  return taken;
}

EvictionQueue::List& EvictionQueue::first_to_watch() {
  const bool many_fresh = fresh_.folios > folios() / kFreshShare;
  return kept_.runs.empty() || (many_fresh && !fresh_.runs.empty()) ? fresh_ : kept_;
}

FolioRange EvictionQueue::next_to_watch() {
  if (probation_.folios >= folios() / kProbationShare) return {};
  const FolioRange run = pop(first_to_watch(), kMostAtOnce);
  push(probation_, run);
  return run;
}

EvictionQueue::Candidate EvictionQueue::next_to_go(std::uint64_t most) {
  if (!probation_.runs.empty()) return {.run = pop(probation_, most), .was_watched = true};
  return {.run = pop(first_to_watch(), most), .was_watched = false};
}

}  // namespace uffda
