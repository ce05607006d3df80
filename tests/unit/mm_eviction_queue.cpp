// Which folios go next: what is used survives, whatever is read once beside it.
#include <gtest/gtest.h>

#include <vector>

#include "mm/eviction_queue.h"

namespace uffda {
namespace {

/// A cache of 1000 folios whose use is seen as the core sees it: the first touch after a folio was put on probation.
class Cache {
 public:
  explicit Cache(std::uint64_t folios) : cached_(folios), watched_(folios), used_(folios) {}

  /// False: it was not there. Then it is now.
  bool touch(FolioIndex index) {
    if (cached_[index]) {
      used_[index] = used_[index] || watched_[index];
      return true;
    }
    if (count_ == kMost) evict();
    cached_[index] = true;
    watched_[index] = used_[index] = false;
    ++count_;
    queue_.add({.first = index, .count = 1});
    return false;
  }

 private:
  static constexpr std::uint64_t kMost = 1000;

  void evict() {
    for (FolioRange run = queue_.next_to_watch(); !run.empty(); run = queue_.next_to_watch()) {
      for (FolioIndex i = run.first; i < run.end(); ++i) {
        watched_[i] = true;
        used_[i] = false;
      }
    }
    while (count_ == kMost) {
      const EvictionQueue::Candidate next = queue_.next_to_go(1);
      ASSERT_EQ(next.run.count, 1U);
      const FolioIndex index = next.run.first;
      watched_[index] = false;
      if (next.was_watched && used_[index]) {
        queue_.keep(next.run);
      } else {
        cached_[index] = false;
        --count_;
      }
    }
  }

  EvictionQueue queue_ = *EvictionQueue::create(200'000);
  std::vector<bool> cached_;
  std::vector<bool> watched_;
  std::vector<bool> used_;
  std::uint64_t count_ = 0;
};

TEST(EvictionQueue, WhatNobodyUsesGoesInTheOrderOfItsComing) {
  EvictionQueue queue = *EvictionQueue::create(4096);
  for (FolioIndex i = 0; i < 100; i += 10) queue.add({.first = 1000 - i * 10, .count = 2});
  for (FolioIndex i = 0; i < 100; i += 10) {
    while (!queue.next_to_watch().empty()) {
    }
    EXPECT_EQ(queue.next_to_go(2).run, (FolioRange{.first = 1000 - i * 10, .count = 2}));
  }
  EXPECT_TRUE(queue.next_to_go(1).run.empty());
  EXPECT_EQ(queue.folios(), 0U);
}

TEST(EvictionQueue, NeighboursThatComeOneAfterTheOtherGoTogether) {
  EvictionQueue queue = *EvictionQueue::create(4096);
  for (FolioIndex i = 100; i < 108; ++i) queue.add({.first = i, .count = 1});
  EXPECT_EQ(queue.next_to_go(5).run, (FolioRange{.first = 100, .count = 5}));
  EXPECT_EQ(queue.next_to_go(5).run, (FolioRange{.first = 105, .count = 3}));
}

TEST(EvictionQueue, AQuarterIsWatched) {
  EvictionQueue queue = *EvictionQueue::create(4096);
  for (FolioIndex i = 0; i < 1000; ++i) queue.add({.first = 2 * i, .count = 1});
  std::uint64_t watched = 0;
  for (FolioRange run = queue.next_to_watch(); !run.empty(); run = queue.next_to_watch()) watched += run.count;
  EXPECT_EQ(watched, 250U);
  EXPECT_TRUE(queue.next_to_go(1).was_watched);
}

TEST(EvictionQueue, WhatIsUsedSurvivesAScan) {
  Cache cache(100'000);
  constexpr FolioIndex kHot = 500;
  for (FolioIndex round = 0; round < 8; ++round) {
    for (FolioIndex i = 0; i < kHot; ++i) {
      cache.touch(i);
      cache.touch(kHot + round * kHot + i);  // once
    }
  }
  std::uint64_t hits = 0;
  for (FolioIndex i = 0; i < 10'000; ++i) {
    cache.touch(10'000 + i);
    if (cache.touch(i % kHot)) ++hits;
  }
  EXPECT_GT(hits, 9'900U) << "FIFO has next to none of them";
}

TEST(EvictionQueue, ALoopOfAllThatFitsStays) {
  Cache cache(2'000);
  std::uint64_t hits = 0;
  for (FolioIndex i = 0; i < 10'000; ++i) hits += cache.touch(i % 1'000) ? 1 : 0;
  EXPECT_EQ(hits, 9'000U);
}

}  // namespace
}  // namespace uffda
