// What to map around a fault, and what to fetch ahead of it: pure decisions.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "mm/fault_around.h"
#include "mm/fault_clusters.h"
#include "mm/latency_floor.h"
#include "mm/read_ahead.h"

namespace uffda {
namespace {

constexpr std::uint64_t kFolios = 100'000;
constexpr ReadAheadLimits kLimits{.folios = kFolios};

void expect_within(const AheadRanges& ahead, const ReadAheadLimits& limits) {
  for (std::size_t i = 0; i < ahead.count; ++i) {
    EXPECT_FALSE(ahead.ranges.at(i).empty());
    EXPECT_LE(ahead.ranges.at(i).end(), limits.folios);
    EXPECT_LE(ahead.ranges.at(i).count, limits.max_window);
  }
}

/// A reader in front of a cache that gets everything it plans.
struct Reader {
  ReadAhead read_ahead;
  std::set<FolioIndex> cached;
  ReadAheadLimits limits = kLimits;
  std::uint64_t misses = 0;
  std::uint64_t asked = 0;
  std::uint64_t largest = 0;

  void take(FolioRange range) {
    ++asked;
    largest = std::max(largest, range.count);
    for (FolioIndex i = range.first; i < range.end(); ++i) cached.insert(i);
  }
  void take(const AheadRanges& ahead) {
    expect_within(ahead, limits);
    for (std::size_t i = 0; i < ahead.count; ++i) take(ahead.ranges.at(i));
  }
  void touch(FolioIndex index) {
    if (cached.contains(index)) {
      bool triggered = false;
      for (std::size_t slot = 0; slot < ReadAhead::kStreams; ++slot) {
        triggered = triggered || read_ahead.trigger(slot).contains(index);
      }
      const AheadRanges ahead = read_ahead.on_hit(index, limits);
      EXPECT_TRUE(triggered || ahead.count == 0) << "outside of the triggers a hit changes nothing";
      take(ahead);
      return;
    }
    ++misses;
    const ReadAheadPlan plan = read_ahead.on_miss(index, limits);
    EXPECT_TRUE(plan.demand.contains(index));
    EXPECT_LE(plan.demand.end(), limits.folios);
    EXPECT_LE(plan.demand.count, limits.max_window);
    take(plan.demand);
    take(plan.ahead);
  }
};

TEST(ReadAheadPlans, ASequentialReaderSoonMissesNothingAndAsksForWholeWindows) {
  Reader reader;
  for (FolioIndex i = 0; i < 20'000; ++i) reader.touch(i);
  EXPECT_LE(reader.misses, 4U);
  EXPECT_EQ(reader.largest, kLimits.max_window);
  EXPECT_LE(reader.asked, 20'000 / kLimits.max_window + 30);
  EXPECT_LE(*reader.cached.rbegin(), 20'000 + 2 * kLimits.max_ahead);
}

TEST(ReadAheadPlans, ARandomReaderFetchesWhatItTouches) {
  Reader reader;
  reader.limits.folios = 100'000'000;
  std::mt19937_64 random(5);
  for (int i = 0; i < 4'000; ++i) reader.touch(random() % reader.limits.folios);
  EXPECT_LE(reader.cached.size(), 4'000U * 11 / 10);
}

TEST(ReadAheadPlans, AStrideIsFound) {
  for (const FolioIndex stride : {20, 64, 1000}) {
    Reader reader;
    const std::uint64_t touches = std::min<std::uint64_t>(200, kFolios / stride);
    for (FolioIndex i = 0; i < touches; ++i) reader.touch(i * stride);
    EXPECT_LE(reader.misses, touches / 2) << stride;
    EXPECT_LE(reader.cached.size(), touches + 16) << stride << ": what lies between is not fetched";
  }
}

TEST(ReadAheadPlans, BackwardReadersAreForeseenAndNeverPassTheStart) {
  Reader reader;
  for (FolioIndex i = 2'001; i-- > 0;) reader.touch(i);
  EXPECT_LE(reader.misses, 1'000U);
  EXPECT_LE(reader.cached.size(), 2'001U + 16);
}

TEST(ReadAheadPlans, InterleavedStreamsKeepTheirWindows) {
  Reader reader;
  for (FolioIndex i = 0; i < 4'000; ++i) {
    for (const FolioIndex start : {0, 30'000, 60'000}) reader.touch(start + i);
  }
  EXPECT_LE(reader.misses, 30U);
  EXPECT_EQ(reader.largest, kLimits.max_window);
}

TEST(ReadAheadPlans, WhatIsAskedForAreWholeUnitsOfTheSource) {
  constexpr std::uint64_t kUnit = 16;
  std::mt19937_64 random(11);
  for (const std::uint64_t folios : {std::uint64_t{100'000}, std::uint64_t{100'001}}) {
    for (const FolioIndex step : {FolioIndex{1}, FolioIndex{40}, FolioIndex{0}}) {
      Reader reader;
      reader.limits.folios = folios;
      reader.limits.unit = kUnit;
      FolioIndex at = 0;
      for (int i = 0; i < 2'000; ++i) reader.touch(at = step == 0 ? random() % folios : at + step);
      std::set<FolioIndex> units;
      for (const FolioIndex index : reader.cached) units.insert(index / kUnit);
      std::uint64_t whole = units.size() * kUnit;
      if (units.contains(folios / kUnit)) whole -= kUnit - folios % kUnit;
      EXPECT_EQ(reader.cached.size(), whole) << "folios " << folios << ", step " << step;
    }
  }
}

TEST(ReadAheadPlans, ASequentialReaderOfUnitsSoonMissesNothing) {
  Reader reader;
  reader.limits.unit = 16;
  for (FolioIndex i = 7; i < 20'000; ++i) reader.touch(i);
  EXPECT_LE(reader.misses, 4U);
}

TEST(ReadAheadPlans, AProvenReaderIsFollowedAsFarAsTheLatencyMakesNecessary) {
  ReadAheadLimits limits{.folios = kFolios, .max_ahead = 4096, .latency = std::chrono::microseconds(50)};
  EXPECT_EQ(folios_ahead(0, limits), 4U * 256) << "as far as without any latency";
  EXPECT_EQ(folios_ahead(500'000, limits), 4U * 256);
  limits.latency = std::chrono::milliseconds(2);
  EXPECT_EQ(folios_ahead(500'000, limits), 6U * 256) << "2 GB/s for 2 ms are 1000 folios, and two windows";
  limits.latency = std::chrono::milliseconds(20);
  EXPECT_EQ(folios_ahead(500'000, limits), 4096U) << "bounded";
  EXPECT_EQ(folios_ahead(1e30, limits), 4096U);
}

/// Reads [0, folios) in order, `each` a folio; every answer comes `latency` after it was asked for. Seconds spent
/// waiting.
double seconds_waited(std::uint64_t folios, Duration each, Duration latency) {
  ReadAhead read_ahead;
  ReadAheadLimits limits{.folios = folios, .max_ahead = 4096, .latency = latency, .now = TimePoint{}};
  limits.now += std::chrono::hours(1);
  std::vector<TimePoint> there(folios, TimePoint::max());
  const auto ask = [&](FolioRange range) {
    for (FolioIndex i = range.first; i < range.end(); ++i) there[i] = std::min(there[i], limits.now + latency);
  };
  const auto ask_all = [&](const AheadRanges& ahead) {
    for (std::size_t i = 0; i < ahead.count; ++i) ask(ahead.ranges.at(i));
  };
  Duration waited{};
  for (FolioIndex i = 0; i < folios; ++i) {
    if (there[i] == TimePoint::max()) {
      const ReadAheadPlan plan = read_ahead.on_miss(i, limits);
      ask(plan.demand);
      ask_all(plan.ahead);
    } else {
      ask_all(read_ahead.on_hit(i, limits));
    }
    waited += std::max(Duration{}, there[i] - limits.now);
    limits.now = std::max(limits.now, there[i]) + each;
  }
  return std::chrono::duration<double>(waited).count();
}

TEST(ReadAheadPlans, ASequentialReaderHardlyWaitsForASourceThatIsFarAway) {
  constexpr std::uint64_t kRead = 131'072;  // 512 MiB
  for (const auto each :
       {std::chrono::nanoseconds(1000), std::chrono::nanoseconds(2000), std::chrono::nanoseconds(8000)}) {
    for (const auto latency :
         {std::chrono::milliseconds(1), std::chrono::milliseconds(2), std::chrono::milliseconds(8)}) {
      const double waits = std::chrono::duration<double>(latency).count() * kRead / 256;  // one for each MiB
      EXPECT_LE(seconds_waited(kRead, each, latency), waits / 10)
          << each.count() << " ns, " << latency.count() << " ms";
    }
  }
}

TEST(LatencyFloors, AreTheLeastOfTheLastSeconds) {
  LatencyFloor floor;
  TimePoint now{std::chrono::hours(1)};
  EXPECT_EQ(floor.lowest(), Duration{});
  floor.note(now, std::chrono::milliseconds(3));
  floor.note(now, std::chrono::milliseconds(2));
  floor.note(now, std::chrono::milliseconds(9));
  EXPECT_EQ(floor.lowest(), std::chrono::milliseconds(2));
  now += LatencyFloor::kEpoch;
  floor.note(now, std::chrono::milliseconds(9));
  EXPECT_EQ(floor.lowest(), std::chrono::milliseconds(2)) << "not forgotten yet";
  now += LatencyFloor::kEpoch;
  floor.note(now, std::chrono::milliseconds(9));
  EXPECT_EQ(floor.lowest(), std::chrono::milliseconds(9));
}

TEST(ReadAheadPlans, NothingIsAskedForBeyondTheEnd) {
  std::mt19937_64 random(9);
  for (const std::uint64_t folios : {1ULL, 2ULL, 5ULL, 17ULL, 255ULL, 257ULL, 3000ULL}) {
    Reader reader;
    reader.limits.folios = folios;
    for (FolioIndex i = 0; i < folios; ++i) reader.touch(i);
    for (FolioIndex i = folios; i-- > 0;) reader.touch(i);
    reader.cached.clear();
    for (int i = 0; i < 2'000; ++i) {
      reader.touch(random() % folios);
      if (i % 7 == 0) reader.cached.clear();
    }
    EXPECT_TRUE(reader.cached.empty() || *reader.cached.rbegin() < folios);
  }
}

/// Touches pages as a guest does that goes on: in no order, and close to each other. How often it had to wait, and what
/// it got.
struct Clustered {
  std::set<FolioIndex> cached;
  std::uint64_t misses = 0;
};

Clustered read_clusters(const std::vector<FolioIndex>& order, bool plenty) {
  ReadAhead read_ahead;
  Clustered result;
  const ReadAheadLimits limits{.folios = kFolios, .plenty = plenty};
  for (const FolioIndex index : order) {
    if (result.cached.contains(index)) continue;
    ++result.misses;
    const ReadAheadPlan plan = read_ahead.on_miss(index, limits);
    EXPECT_TRUE(plan.demand.contains(index));
    for (FolioIndex i = plan.demand.first; i < plan.demand.end(); ++i) result.cached.insert(i);
  }
  return result;
}

/// 60 places far from each other, of which 12 of 32 folios each are touched, every second folio at most.
std::vector<FolioIndex> clusters() {
  std::mt19937_64 random(17);
  std::vector<FolioIndex> order;
  for (FolioIndex place = 0; place < 60; ++place) {
    for (FolioIndex i = 0; i < 12; ++i) order.push_back(place * 1600 + i * 5 % 32);
  }
  std::ranges::shuffle(order, random);
  return order;
}

TEST(FaultClusters, WhereRandomFaultsComeInClustersFewerHaveToBeWaitedFor) {
  const Clustered alone = read_clusters(clusters(), /*plenty=*/false);
  EXPECT_GE(alone.misses, 600U);
  const Clustered around = read_clusters(clusters(), /*plenty=*/true);
  EXPECT_LE(around.misses, alone.misses / 2);
  EXPECT_LE(around.cached.size(), alone.cached.size() * 4) << "and not everything is fetched";
}

TEST(FaultClusters, ARandomReaderIsGivenNoNeighbours) {
  // As much as a benchmark has, and more.
  for (const std::uint64_t folios : {std::uint64_t{32'768}, std::uint64_t{1'000'000}}) {
    FaultClusters faults;
    std::mt19937_64 random(21);
    std::uint64_t given = 0;
    for (int i = 0; i < 10'000; ++i) given += faults.note(random() % folios);
    EXPECT_LE(given, 10'000U * 11 / 10) << folios;
  }
}

TEST(FaultClusters, TheFirstFaultsShowNothingYet) {
  FaultClusters faults;
  EXPECT_EQ(faults.note(100), 1U);
  EXPECT_EQ(faults.note(101), 1U);
  EXPECT_EQ(faults.note(102), 1U);
}

TEST(FaultClusters, MoreIsGivenWhereMoreWasAsked) {
  FaultClusters faults;
  for (FolioIndex i = 0; i < 32; ++i) faults.note(i);
  EXPECT_EQ(faults.note(9'984), 4U);
  EXPECT_EQ(faults.note(9'992), 8U);
  EXPECT_EQ(faults.note(10'000), 16U);
  EXPECT_EQ(faults.note(9'985), 16U);
}

TEST(FaultClusters, AGroupHoldsTheFaultAndEndsWithTheObject) {
  EXPECT_EQ(group_of(21, 4, 100), (FolioRange{.first = 20, .count = 4}));
  EXPECT_EQ(group_of(99, 16, 100), (FolioRange{.first = 96, .count = 4}));
  EXPECT_EQ(group_of(5, 1, 100), (FolioRange{.first = 5, .count = 1}));
}

TEST(FaultClusters, AGroupIsOfWholeUnitsOfTheSource) {
  for (const std::uint64_t unit : {1U, 2U, 3U, 4U, 8U, 16U, 24U, 64U}) {
    ReadAhead read_ahead;
    const ReadAheadLimits limits{.folios = 10'000, .unit = unit};
    std::mt19937_64 random(23);
    for (int i = 0; i < 3'000; ++i) {
      const FolioIndex index = random() % 2'000;
      const FolioRange demand = read_ahead.on_miss(index, limits).demand;
      ASSERT_TRUE(demand.contains(index)) << unit;
      ASSERT_EQ(demand.first % unit, 0U) << unit;
      ASSERT_EQ(demand.count % unit, 0U) << unit;
    }
  }
}

TEST(FaultAround, CachedNeighboursAreMappedWhereFaultsComeInClusters) {
  FaultStreams streams;
  std::set<FolioIndex> mapped;
  std::uint64_t faults = 0;
  const std::vector<FolioIndex> order = clusters();
  for (const FolioIndex index : order) {
    if (mapped.contains(index)) continue;
    ++faults;
    const FolioRange window = streams.decide(index, kFolios, true);
    for (FolioIndex i = window.first; i < window.end(); ++i) mapped.insert(i);
  }
  EXPECT_LE(faults, order.size() / 2);
  FaultStreams plain;
  EXPECT_EQ(plain.decide(5, kFolios, false).count, 1U);
}

TEST(FaultAround, AScanSoonMapsTwoMegabytesAFault) {
  FaultStreams streams;
  std::uint64_t faults = 0;
  FolioRange window;
  for (FolioIndex at = 0; at < kFolios; at = window.end(), ++faults) {
    window = streams.decide(at, kFolios, true);
    ASSERT_TRUE(window.contains(at));
    ASSERT_LE(window.count, 512U);
    ASSERT_LE(window.end(), kFolios);
  }
  EXPECT_LE(faults, kFolios / 512 + 12);
}

TEST(FaultAround, ABackwardScanToo) {
  FaultStreams streams;
  std::uint64_t faults = 0;
  for (FolioIndex left = kFolios; left > 0; ++faults) {
    const FolioRange window = streams.decide(left - 1, kFolios, true);
    ASSERT_TRUE(window.contains(left - 1));
    ASSERT_LE(window.count, 512U);
    left = window.first;
  }
  EXPECT_LE(faults, kFolios / 512 + 12);
}

TEST(FaultAround, ARandomReaderNeverPaysForNeighbours) {
  FaultStreams streams;
  std::mt19937_64 random(3);
  std::uint64_t mapped = 0;
  for (int i = 0; i < 10'000; ++i) mapped += streams.decide(random() % 100'000'000, 100'000'000, true).count;
  EXPECT_LE(mapped, 10'000U + 50);
}

TEST(FaultAround, InterleavedScansKeepTheirWindows) {
  FaultStreams streams;
  std::map<FolioIndex, FolioIndex> at{{0, 0}, {20'000, 20'000}, {40'000, 40'000}};
  for (int round = 0; round < 25; ++round) {
    for (auto& [start, next] : at) {
      const FolioRange window = streams.decide(next, kFolios, true);
      next = window.end();
    }
  }
  for (const auto& [start, next] : at) EXPECT_GE(next - start, 512U * 10) << start;
}

TEST(FaultAround, WindowsStayInsideTheObject) {
  std::mt19937_64 random(11);
  for (const std::uint64_t folios : {1ULL, 2ULL, 3ULL, 100ULL, 513ULL, 5000ULL}) {
    FaultStreams streams;
    FolioIndex at = 0;
    for (int i = 0; i < 5'000; ++i) {
      const FolioRange window = streams.decide(at, folios, true);
      ASSERT_TRUE(window.contains(at));
      ASSERT_LE(window.end(), folios);
      switch (random() % 4) {
        case 0:
          at = random() % folios;
          break;
        case 1:
          at = window.first == 0 ? 0 : window.first - 1;
          break;
        default:
          at = std::min(folios - 1, window.end());
          break;
      }
    }
  }
}

TEST(FaultAround, AStreamSurvivesPacking) {
  for (const FolioIndex edge : {0ULL, 1ULL, 12'345ULL, (1ULL << 52)}) {
    for (unsigned window = 0; window <= kMaxAroundLog2; ++window) {
      for (const bool backward : {false, true}) {
        const FaultStream stream{.edge = edge, .window_log2 = window, .backward = backward};
        EXPECT_NE(stream.pack(), 0U);
        const FaultStream again = FaultStream::unpack(stream.pack());
        EXPECT_EQ(again.edge, edge);
        EXPECT_EQ(again.window_log2, window);
        EXPECT_EQ(again.backward, backward);
      }
    }
  }
}

}  // namespace
}  // namespace uffda
