// Which folios go next: what is used survives, whatever is read once beside it.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
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
    const auto watch = [&](FolioRange run) {
      for (FolioIndex i = run.first; i < run.end(); ++i) {
        watched_[i] = true;
        used_[i] = false;
      }
    };
    while (!queue_.next_to_watch(watch).empty()) {
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

  EvictionQueue queue_ = *EvictionQueue::create(200'000, kMost);
  std::vector<bool> cached_;
  std::vector<bool> watched_;
  std::vector<bool> used_;
  std::uint64_t count_ = 0;
};

void nobody(FolioRange /*run*/) {}

TEST(EvictionQueue, WhatNobodyUsesGoesInTheOrderOfItsComing) {
  EvictionQueue queue = *EvictionQueue::create(4096, 4096);
  for (FolioIndex i = 0; i < 100; i += 10) queue.add({.first = 1000 - i * 10, .count = 2});
  for (FolioIndex i = 0; i < 100; i += 10) {
    while (!queue.next_to_watch(nobody).empty()) {
    }
    EXPECT_EQ(queue.next_to_go(2).run, (FolioRange{.first = 1000 - i * 10, .count = 2}));
  }
  EXPECT_TRUE(queue.next_to_go(1).run.empty());
  EXPECT_EQ(queue.folios(), 0U);
}

TEST(EvictionQueue, NeighboursThatComeOneAfterTheOtherGoTogether) {
  EvictionQueue queue = *EvictionQueue::create(4096, 4096);
  for (FolioIndex i = 100; i < 108; ++i) queue.add({.first = i, .count = 1});
  EXPECT_EQ(queue.next_to_go(5).run, (FolioRange{.first = 100, .count = 5}));
  EXPECT_EQ(queue.next_to_go(5).run, (FolioRange{.first = 105, .count = 3}));
}

TEST(EvictionQueue, AQuarterIsWatched) {
  EvictionQueue queue = *EvictionQueue::create(4096, 4096);
  for (FolioIndex i = 0; i < 1000; ++i) queue.add({.first = 2 * i, .count = 1});
  std::uint64_t watched = 0;
  while (!queue.next_to_watch([&](FolioRange run) { watched += run.count; }).empty()) {
  }
  EXPECT_EQ(watched, 256U) << "whole blocks: every other of 32";
  EXPECT_TRUE(queue.next_to_go(1).was_watched);
}

TEST(EvictionQueue, NeighboursAreWatchedTogetherWheneverTheyCame) {
  constexpr FolioIndex kFolios = 128 * 512;  // blocks of 512
  EvictionQueue queue = *EvictionQueue::create(kFolios, kFolios);
  for (FolioIndex i = 0; i < 512; i += 2) {
    queue.add({.first = 512 + i, .count = 1});
    queue.add({.first = 5'120 + (511 - i), .count = 1});
  }
  std::vector<bool> watched(kFolios);
  std::uint64_t count = 0;
  const FolioRange unmapped = queue.next_to_watch([&](FolioRange run) {
    count += run.count;
    for (FolioIndex i = run.first; i < run.end(); ++i) watched[i] = true;
  });
  EXPECT_EQ(unmapped, (FolioRange{.first = 512, .count = 511}));
  EXPECT_EQ(count, 256U);
  for (FolioIndex i = 0; i < 512; ++i) EXPECT_EQ(watched[512 + i], i % 2 == 0) << i;
  // What comes to a block on probation later waits for another turn.
  queue.add({.first = 513, .count = 1});
  for (FolioIndex i = 0; i < 512; i += 2) {
    const EvictionQueue::Candidate next = queue.next_to_go(512);
    EXPECT_EQ(next.run, (FolioRange{.first = 512 + i, .count = 1}));
    EXPECT_TRUE(next.was_watched);
  }
  EXPECT_EQ(queue.folios(), 257U);
}

TEST(FolioQueue, EveryFolioComesOutOnce) {
  std::mt19937_64 random(7);
  constexpr FolioIndex kFolios = 1'000;  // no whole number of blocks
  FolioQueue queue = *FolioQueue::create(kFolios, 64);
  std::vector<bool> queued(kFolios);
  std::uint64_t count = 0;
  for (int step = 0; step < 20'000; ++step) {
    const FolioIndex first = random() % kFolios;
    FolioRange run{.first = first, .count = 0};
    while (run.end() < kFolios && run.count < 1 + random() % 100 && !queued[run.end()]) {
      queued[run.end()] = true;
      ++run.count;
    }
    queue.push(run);
    count += run.count;
    const auto gone = [&](FolioRange out) {
      for (FolioIndex i = out.first; i < out.end(); ++i) {
        ASSERT_TRUE(queued.at(i)) << i;
        queued[i] = false;
      }
      count -= out.count;
    };
    if (random() % 16 == 0) {
      queue.pop_block(gone);
    } else {
      gone(queue.pop(1 + random() % 130));
    }
    ASSERT_EQ(queue.folios(), count);
  }
  while (queue.folios() != 0) {
    const FolioRange out = queue.pop(1'000);
    ASSERT_FALSE(out.empty());
    for (FolioIndex i = out.first; i < out.end(); ++i) queued[i] = false;
  }
  EXPECT_EQ(std::ranges::count(queued, true), 0);
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
