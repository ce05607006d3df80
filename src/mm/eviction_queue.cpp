#include "mm/eviction_queue.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

namespace uffda {
namespace {

// Shares of all that is queued. Measured: bench/eviction, docs/design/budget.md.
constexpr std::uint64_t kFreshShare = 8;      // an eighth
constexpr std::uint64_t kProbationShare = 4;  // a quarter
constexpr std::uint64_t kMostAtOnce = 64;     // folios that go on probation together

}  // namespace

Result<EvictionQueue> EvictionQueue::create(std::uint64_t folios) {
  const ByteCount size{align_up(folios * sizeof(Link), kPageSize.value)};
  return EvictionQueue(
      UFFDA_TRY(os::map_memory(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)));
}

EvictionQueue::EvictionQueue(os::MappedMemory memory)
    : memory_(std::move(memory)),
      links_(reinterpret_cast<Link*>(memory_.bytes().data()), memory_.bytes().size() / sizeof(Link)) {}

void EvictionQueue::push(List& list, FolioRange run) {
  if (run.empty()) return;
  const bool first = list.folios == 0;
  list.folios += run.count;
  Link* const newest = first ? nullptr : &links_[list.newest];
  // A run that follows on the last one is one with it, so that they go together.
  if (newest != nullptr && list.newest + newest->count == run.first && newest->count + run.count <= kMostAtOnce) {
    newest->count += run.count;
    return;
  }
  if (newest != nullptr) newest->next = run.first;
  if (first) list.oldest = run.first;
  list.newest = run.first;
  links_[run.first].count = run.count;
}

FolioRange EvictionQueue::pop(List& list, std::uint64_t most) {
  if (list.folios == 0) return {};
  const FolioIndex first = list.oldest;
  const Link oldest = links_[first];
  const FolioRange taken{.first = first, .count = std::min<std::uint64_t>(oldest.count, most)};
  list.folios -= taken.count;
  if (taken.count == oldest.count) {
    list.oldest = oldest.next;
    return taken;
  }
  // The rest stays in its place.
  links_[taken.end()] = {.next = oldest.next, .count = oldest.count - taken.count};
  if (list.newest == first) list.newest = taken.end();
  list.oldest = taken.end();
  return taken;
}

EvictionQueue::List& EvictionQueue::first_to_watch() {
  const bool many_fresh = fresh_.folios > folios() / kFreshShare;
  return kept_.folios == 0 || (many_fresh && fresh_.folios != 0) ? fresh_ : kept_;
}

FolioRange EvictionQueue::next_to_watch() {
  if (probation_.folios >= folios() / kProbationShare) return {};
  const FolioRange run = pop(first_to_watch(), kMostAtOnce);
  push(probation_, run);
  return run;
}

EvictionQueue::Candidate EvictionQueue::next_to_go(std::uint64_t most) {
  if (probation_.folios != 0) return {.run = pop(probation_, most), .was_watched = true};
  return {.run = pop(first_to_watch(), most), .was_watched = false};
}

}  // namespace uffda
