#include "sources/cache_set.h"

#include <algorithm>
#include <numeric>

namespace uffda::sources {

std::optional<std::size_t> CacheSet::find(const Hash128& key) const {
  for (std::size_t way = 0; way < kWays; ++way) {
    if (entries[way].kind != CacheEntry::free && entries[way].key == key) return way;
  }
  return std::nullopt;
}

std::array<std::size_t, CacheSet::kWays> CacheSet::by_age() const {
  std::array<std::size_t, kWays> ways{};
  std::iota(ways.begin(), ways.end(), 0);
  std::ranges::sort(ways, {}, [this](std::size_t way) { return entries[way].sequence; });
  return ways;
}

std::uint64_t CacheSet::next() {
  constexpr std::uint64_t kMost = std::uint64_t{1} << 62U;  // 10^18 pieces: only damage gets there
  for (const CacheEntry& entry : entries) newest = std::max(newest, entry.sequence);
  if (newest >= kMost) {
    // One number each, or the hand, which moves by numbers, would pass all that share one.
    newest = 0;
    for (const std::size_t way : by_age()) entries[way].sequence = ++newest;
    hand = 0;
  }
  return ++newest;
}

std::size_t CacheSet::make_room() {
  for (std::size_t way = 0; way < kWays; ++way) {
    if (entries[way].kind == CacheEntry::free) return way;
  }
  std::array<std::size_t, kWays> ways = by_age();
  const std::size_t latest = ways.back();
  // Past the newest piece the hand begins anew, before the next one comes in.
  const auto step_past = [&](std::size_t way) { hand = way == latest ? 0 : entries[way].sequence + 1; };
  const auto* const start =
      std::ranges::find_if(ways, [this](std::size_t way) { return entries[way].sequence >= hand; });
  std::ranges::rotate(ways, start == ways.end() ? ways.begin() : ways.begin() + (start - ways.begin()));
  for (const std::size_t way : ways) {
    CacheEntry& entry = entries[way];
    if (entry.visited == 0) {
      step_past(way);
      return way;
    }
    entry.visited = 0;
  }
  // All were visited, and none is now: the first of the round.
  step_past(ways.front());
  return ways.front();
}

}  // namespace uffda::sources
