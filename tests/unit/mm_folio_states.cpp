// States and pins of folios, alone and under many threads.
#include "mm/folio_states.h"

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "mm/staging.h"
#include "mm/stats.h"

namespace uffda {
namespace {

FolioStates make(std::uint64_t folios) {
  auto states = FolioStates::create(folios);
  EXPECT_TRUE(states);
  return std::move(*states);
}

void fill(FolioStates& states, FolioIndex index) {
  ASSERT_TRUE(states.apply(index, PageEvent::fetch_started));
  ASSERT_TRUE(states.apply(index, PageEvent::filled));
}

TEST(FolioStatesTable, StartsAbsent) {
  const FolioStates states = make(10'000);
  for (FolioIndex i = 0; i < states.count(); ++i) ASSERT_EQ(states.get(i), PageState::absent);
}

TEST(FolioStatesTable, ARefusedEventChangesNothing) {
  FolioStates states = make(4);
  EXPECT_FALSE(states.apply(1, PageEvent::filled));
  EXPECT_EQ(states.get(1), PageState::absent);
  EXPECT_TRUE(states.apply(1, PageEvent::fetch_started));
  EXPECT_FALSE(states.apply(1, PageEvent::fetch_started)) << "one folio is claimed once";
  EXPECT_EQ(states.get(0), PageState::absent);
  EXPECT_EQ(states.get(2), PageState::absent);
}

TEST(FolioStatesTable, OnlyPresentFoliosArePinned) {
  FolioStates states = make(2);
  EXPECT_FALSE(states.pin(0));
  ASSERT_TRUE(states.apply(0, PageEvent::fetch_started));
  EXPECT_FALSE(states.pin(0));
  ASSERT_TRUE(states.apply(0, PageEvent::filled));
  EXPECT_TRUE(states.pin(0));
  states.unpin(0);
  ASSERT_TRUE(states.apply(0, PageEvent::evict_started));
  EXPECT_FALSE(states.pin(0));
}

TEST(FolioStatesTable, EvictionWaitsForEveryPin) {
  FolioStates states = make(2);
  fill(states, 1);
  ASSERT_TRUE(states.pin(1));
  ASSERT_TRUE(states.pin(1));
  EXPECT_FALSE(states.apply(1, PageEvent::evict_started));
  states.unpin(1);
  EXPECT_FALSE(states.apply(1, PageEvent::evict_started));
  states.unpin(1);
  EXPECT_TRUE(states.apply(1, PageEvent::evict_started));
}

TEST(FolioStatesTable, ThePinCountHasAnEndAndDoesNotSpill) {
  FolioStates states = make(3);
  fill(states, 1);
  for (int i = 0; i < 255; ++i) ASSERT_TRUE(states.pin(1)) << i;
  EXPECT_FALSE(states.pin(1));
  EXPECT_EQ(states.get(1), PageState::clean);
  EXPECT_EQ(states.get(2), PageState::absent);
  for (int i = 0; i < 255; ++i) states.unpin(1);
  EXPECT_TRUE(states.apply(1, PageEvent::evict_started));
}

TEST(FolioStatesTable, PinsAroundStopAtTheFirstAbsentNeighbour) {
  FolioStates states = make(20);
  for (const FolioIndex i : {3, 4, 5, 6, 8, 9}) fill(states, i);
  ASSERT_TRUE(states.pin(5));
  const FolioRange run = states.pin_around(5, {.first = 0, .count = 20});
  EXPECT_EQ(run, (FolioRange{.first = 3, .count = 4}));
  for (FolioIndex i = 3; i < 7; ++i) EXPECT_FALSE(states.apply(i, PageEvent::evict_started)) << i;
  EXPECT_TRUE(states.apply(8, PageEvent::evict_started));
  states.unpin(run);
  ASSERT_TRUE(states.pin(5));
  EXPECT_EQ(states.pin_around(5, {.first = 5, .count = 1}), (FolioRange{.first = 5, .count = 1}))
      << "the window is the limit";
  states.unpin(5);
  for (FolioIndex i = 3; i < 7; ++i) EXPECT_TRUE(states.apply(i, PageEvent::evict_started)) << i;
}

TEST(FolioStatesTable, TheFirstRunOfARange) {
  FolioStates states = make(20);
  for (const FolioIndex i : {3, 4, 8}) fill(states, i);
  const FolioRange first = states.pin_first_run({.first = 1, .count = 15});
  EXPECT_EQ(first, (FolioRange{.first = 3, .count = 2}));
  const FolioRange second = states.pin_first_run({.first = 5, .count = 11});
  EXPECT_EQ(second, (FolioRange{.first = 8, .count = 1}));
  EXPECT_TRUE(states.pin_first_run({.first = 9, .count = 11}).empty());
  states.unpin(first);
  states.unpin(second);
}

TEST(FolioStatesTable, TheMarkToFetchAloneSurvivesChangesOfState) {
  FolioStates states = make(3);
  EXPECT_FALSE(states.fetch_alone(1));
  states.mark_fetch_alone(1);
  fill(states, 1);
  ASSERT_TRUE(states.pin(1));
  states.unpin(1);
  EXPECT_TRUE(states.fetch_alone(1));
  EXPECT_EQ(states.get(1), PageState::clean);
  EXPECT_FALSE(states.fetch_alone(0));
  EXPECT_FALSE(states.fetch_alone(2));
}

/// Mappers pin, look at the folio's "memory" and unpin; an evictor clears it; fillers fill it: nobody who holds a pin
/// sees it change.
TEST(FolioStatesTable, NobodyWhoHoldsAPinSeesTheFolioGo) {
  constexpr std::uint64_t kFolios = 8;
  constexpr int kRounds = 30'000;
  FolioStates states = make(kFolios);
  std::vector<std::atomic<int>> memory(kFolios);
  std::atomic<int> wrong{0};
  std::atomic<int> evicted{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < kRounds; ++i) {
        const FolioIndex index = random() % kFolios;
        if (states.apply(index, PageEvent::fetch_started)) {
          memory[index] = 1;
          if (!states.apply(index, PageEvent::filled)) ++wrong;
        }
      }
    });
    threads.emplace_back([&, t] {
      std::mt19937_64 random(100 + t);
      for (int i = 0; i < kRounds; ++i) {
        const FolioIndex index = random() % kFolios;
        if (!states.pin(index)) continue;
        const FolioRange run = states.pin_around(index, {.first = 0, .count = kFolios});
        for (FolioIndex at = run.first; at < run.end(); ++at) wrong += memory[at] == 1 ? 0 : 1;
        states.unpin(run);
      }
    });
    threads.emplace_back([&, t] {
      std::mt19937_64 random(200 + t);
      for (int i = 0; i < kRounds || evicted == 0; ++i) {  // it may run before anything is there to evict
        const FolioIndex index = random() % kFolios;
        if (!states.apply(index, PageEvent::evict_started)) continue;
        memory[index] = 0;
        ++evicted;
        if (!states.apply(index, PageEvent::evicted)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(evicted, 0);
}

TEST(Staging, BuffersAreDisjointAndComeBack) {
  auto pool = StagingPool::create();
  ASSERT_TRUE(pool);
  std::vector<std::span<std::byte>> taken;
  for (auto buffer = pool->acquire(4_KiB); !buffer.empty(); buffer = pool->acquire(4_KiB)) taken.push_back(buffer);
  EXPECT_EQ(taken.size(), StagingPool::kSmallBuffers + StagingPool::kLargeBuffers)
      << "large ones serve when small ones are out";
  const std::span<std::byte> arena = pool->arena();
  for (const auto& buffer : taken) {
    EXPECT_TRUE(buffer.data() >= arena.data() && buffer.data() + buffer.size() <= arena.data() + arena.size());
    buffer.front() = buffer.back() = std::byte{0};
    for (const auto& other : taken) {
      EXPECT_TRUE(other.data() == buffer.data() || other.data() >= buffer.data() + buffer.size() ||
                  other.data() + other.size() <= buffer.data());
    }
  }
  EXPECT_TRUE(pool->acquire(1_MiB).empty());
  for (const auto& buffer : taken) pool->release(buffer);
  for (std::size_t i = 0; i < StagingPool::kLargeBuffers; ++i) EXPECT_EQ(pool->acquire(1_MiB).size(), (1_MiB).value);
  EXPECT_TRUE(pool->acquire(1_MiB).empty());
  EXPECT_EQ(pool->acquire(64_KiB).size(), (64_KiB).value);
}

TEST(Latencies, ManyThreadsRecordAndOneReads) {
  LatencyHistogram histogram;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 1; i <= 2'000; ++i) histogram.record(std::chrono::microseconds(i % 100 + 1));
    });
  }
  for (int i = 0; i < 20; ++i) EXPECT_LE(histogram.summary().count, 8'000U);
  for (std::thread& thread : threads) thread.join();
  const LatencySummary summary = histogram.summary();
  EXPECT_EQ(summary.count, 8'000U);
  EXPECT_LE(summary.p50_us, summary.p90_us);
  EXPECT_LE(summary.p90_us, summary.p99_us);
  EXPECT_LE(summary.p99_us, summary.max_us);
  EXPECT_NEAR(summary.p50_us, 50, 10);
  EXPECT_NEAR(summary.max_us, 100, 1);
}

}  // namespace
}  // namespace uffda
