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

std::uint64_t CacheSet::next() {
  constexpr std::uint64_t kMost = std::uint64_t{1} << 62U;  // 10^18 pieces: only damage gets there
  for (const CacheEntry& entry : entries) newest = std::max(newest, entry.sequence);
  if (newest >= kMost) {
    for (CacheEntry& entry : entries) entry.sequence = 0;
    newest = 0;
    hand = 0;
  }
  return ++newest;
}

std::size_t CacheSet::make_room() {
  for (std::size_t way = 0; way < kWays; ++way) {
    if (entries[way].kind == CacheEntry::free) return way;
  }
  std::array<std::size_t, kWays> by_age{};
  std::iota(by_age.begin(), by_age.end(), 0);
  std::ranges::sort(by_age, {}, [this](std::size_t way) { return entries[way].sequence; });
  const std::size_t latest = by_age.back();
  // Past the newest piece the hand begins anew, before the next one comes in.
  const auto step_past = [&](std::size_t way) { hand = way == latest ? 0 : entries[way].sequence + 1; };
  const auto* const start =
      std::ranges::find_if(by_age, [this](std::size_t way) { return entries[way].sequence >= hand; });
  std::ranges::rotate(by_age, start == by_age.end() ? by_age.begin() : by_age.begin() + (start - by_age.begin()));
  for (const std::size_t way : by_age) {
    CacheEntry& entry = entries[way];
    if (entry.visited == 0) {
      step_past(way);
      return way;
    }
    entry.visited = 0;
  }
  // All were visited, and none is now: the first of the round.
  step_past(by_age.front());
  return by_age.front();
}

}  // namespace uffda::sources
