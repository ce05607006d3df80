#include "sources/cache_set.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>

namespace uffda::sources {
namespace {

constexpr std::size_t kWays = CacheSet::kWays;

void put(CacheSet& set, std::size_t way, std::uint64_t key) {
  set.entries[way] = {};
  set.entries[way].key = {key, key};
  set.entries[way].kind = CacheEntry::data;
  set.entries[way].sequence = set.next();
}

CacheSet full() {
  CacheSet set{};
  for (std::size_t way = 0; way < kWays; ++way) put(set, way, way);
  return set;
}

TEST(CacheSet, fills_what_is_free_before_anything_gives_way) {
  CacheSet set{};
  for (std::size_t i = 0; i < kWays; ++i) {
    const std::size_t way = set.make_room();
    ASSERT_EQ(set.entries[way].kind, CacheEntry::free);
    put(set, way, i);
  }
  set.entries[17] = {};
  EXPECT_EQ(set.make_room(), 17U);
}

TEST(CacheSet, finds_by_the_whole_key) {
  CacheSet set = full();
  EXPECT_EQ(set.find({5, 5}), 5U);
  EXPECT_EQ(set.find({5, 6}), std::nullopt);
  set.entries[5].kind = CacheEntry::free;
  EXPECT_EQ(set.find({5, 5}), std::nullopt);
}

TEST(CacheSet, lets_the_oldest_go_that_nobody_read) {
  CacheSet set = full();
  EXPECT_EQ(set.make_room(), 0U);
  put(set, 0, 100);
  set.entries[1].visited = 1;
  set.entries[2].visited = 1;
  EXPECT_EQ(set.make_room(), 3U) << "the hand goes on from where it was";
  EXPECT_EQ(set.entries[1].visited, 0U) << "and takes the marks off";
  put(set, 3, 101);
  EXPECT_EQ(set.make_room(), 4U);
}

TEST(CacheSet, goes_round) {
  CacheSet set = full();
  for (CacheEntry& entry : set.entries) entry.visited = 1;
  EXPECT_EQ(set.make_room(), 0U);
  EXPECT_TRUE(std::ranges::all_of(set.entries, [](const CacheEntry& entry) { return entry.visited == 0; }));
}

TEST(CacheSet, survives_any_contents) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 2000; ++round) {
    CacheSet set{};
    for (std::size_t i = 0; i < sizeof set / 8; ++i) {
      const std::uint64_t word = random() >> (random() % 64);
      std::copy_n(reinterpret_cast<const std::byte*>(&word), 8, reinterpret_cast<std::byte*>(&set) + i * 8);
    }
    ASSERT_LT(set.make_room(), kWays);
    (void)set.find({random(), random()});
    const std::uint64_t next = set.next();
    for (const CacheEntry& entry : set.entries) ASSERT_LT(entry.sequence, next);
  }
}

/// The cache of the paper, as a list with a hand.
class Sieve {
 public:
  bool access(std::uint64_t key) {
    const auto found = std::ranges::find(entries_, key, &Entry::key);
    if (found != entries_.end()) {
      found->visited = true;
      return true;
    }
    if (entries_.size() == kWays) {
      while (true) {
        if (hand_ == entries_.size()) hand_ = 0;
        if (!entries_[hand_].visited) break;
        entries_[hand_++].visited = false;
      }
      entries_.erase(entries_.begin() + static_cast<long>(hand_));
      if (hand_ == entries_.size()) hand_ = 0;
    }
    entries_.push_back({key, false});
    return false;
  }

 private:
  struct Entry {
    std::uint64_t key;
    bool visited;
  };
  std::deque<Entry> entries_;  // oldest first
  std::size_t hand_ = 0;
};

TEST(CacheSet, is_sieve) {
  std::mt19937_64 random(7);
  CacheSet set{};
  Sieve sieve;
  for (int i = 0; i < 20000; ++i) {
    const std::uint64_t key = std::min(random() % 400, random() % 400);
    const auto way = set.find({key, key});
    ASSERT_EQ(sieve.access(key), way.has_value()) << i;
    if (way) {
      set.entries[*way].visited = 1;
    } else {
      put(set, set.make_room(), key);
    }
  }
}

}  // namespace
}  // namespace uffda::sources
