// The states of a folio: the one table, and what no sequence of events may bring about.
#include "mm/page_state.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <utility>

#include "uffda/deadline.h"
#include "uffda/flags.h"
#include "uffda/units.h"

namespace uffda {
namespace {

using S = PageState;
using E = PageEvent;

/// The diagram of the header, written down a second time.
const std::map<std::pair<S, E>, S> kDiagram{
    {{S::absent, E::fetch_started}, S::filling},
    {{S::filling, E::filled}, S::clean},
    {{S::filling, E::given_up}, S::absent},
    {{S::filling, E::failed}, S::poisoned},
    {{S::poisoned, E::invalidated}, S::absent},
    {{S::clean, E::written}, S::dirty},
    {{S::clean, E::evict_started}, S::evicting},
    {{S::evicting, E::evicted}, S::absent},
    {{S::evicting, E::evict_aborted}, S::clean},
    {{S::dirty, E::written}, S::dirty},
    {{S::dirty, E::writeback_started}, S::awaiting_clean},
    {{S::awaiting_clean, E::written}, S::dirty},
    {{S::awaiting_clean, E::written_back}, S::clean},
    {{S::awaiting_clean, E::writeback_failed}, S::dirty},
    // A write came during the writeback that ends now.
    {{S::dirty, E::written_back}, S::dirty},
    {{S::dirty, E::writeback_failed}, S::dirty},
    {{S::filling, E::supplied}, S::dirty},
    {{S::clean, E::lost}, S::absent},
    {{S::dirty, E::lost}, S::absent},
    {{S::awaiting_clean, E::lost}, S::absent},
};

TEST(PageStates, NextIsTheDiagramAndNothingElse) {
  for (int s = 0; s < kPageStates; ++s) {
    for (int e = 0; e < kPageEvents; ++e) {
      const std::pair at{static_cast<S>(s), static_cast<E>(e)};
      const auto got = next(at.first, at.second);
      const auto wanted = kDiagram.find(at);
      ASSERT_EQ(got.has_value(), wanted != kDiagram.end()) << to_string(at.first) << " event " << e;
      if (got) {
        EXPECT_EQ(*got, wanted->second) << to_string(at.first) << " event " << e;
      } else {
        EXPECT_EQ(got.error().code(), Errc::invalid_argument);
      }
    }
  }
}

TEST(PageStates, CleanMeansThatTheSourceHasTheseBytes) {
  std::mt19937_64 random(1);
  for (int walk = 0; walk < 300; ++walk) {
    S state = S::absent;
    bool cached = false;   // the page cache holds bytes
    bool newer = false;    // of which the source lacks some
    bool writing = false;  // a writeback runs that began after the last write
    for (int step = 0; step < 300; ++step) {
      const auto event = static_cast<E>(random() % kPageEvents);
      const auto to = next(state, event);
      if (!to) continue;
      switch (event) {
        case E::filled:
          cached = true;
          newer = false;
          break;
        case E::written:
          newer = true;
          writing = false;
          break;
        case E::writeback_started:
          writing = true;
          break;
        case E::written_back:
          newer = newer && !writing;
          writing = false;
          break;
        case E::writeback_failed:
          writing = false;
          break;
        case E::evicted:
          ASSERT_FALSE(newer) << "a write was thrown away";
          cached = false;
          break;
        case E::supplied:
          cached = true;
          newer = true;
          break;
        case E::lost:  // by the program's own doing
          cached = newer = writing = false;
          break;
        default:
          break;
      }
      state = *to;
      ASSERT_EQ(is_present(state), cached && state != S::evicting);
      ASSERT_TRUE(state != S::clean || (cached && !newer));
      ASSERT_FALSE(state == S::evicting && newer);
    }
  }
}

TEST(PageStates, EveryStateCanBeLeftAndReached) {
  for (int s = 0; s < kPageStates; ++s) {
    bool left = false;
    bool reached = s == 0;
    for (const auto& [from, to] : kDiagram) {
      left = left || (from.first == static_cast<S>(s) && to != from.first);
      reached = reached || (to == static_cast<S>(s) && from.first != to);
    }
    EXPECT_TRUE(left && reached) << to_string(static_cast<S>(s));
  }
}

TEST(PageStates, ASuccessorStartsAgainWhatWasHalfDone) {
  EXPECT_EQ(adopted(S::absent), S::absent);
  EXPECT_EQ(adopted(S::filling), S::absent);
  EXPECT_EQ(adopted(S::clean), S::clean);
  EXPECT_EQ(adopted(S::dirty), S::dirty);
  EXPECT_EQ(adopted(S::awaiting_clean), S::dirty);
  EXPECT_EQ(adopted(S::evicting), S::absent);
  EXPECT_EQ(adopted(S::poisoned), S::poisoned);
  for (int s = 0; s < kPageStates; ++s) {
    const S once = adopted(static_cast<S>(s));
    EXPECT_EQ(adopted(once), once);
    EXPECT_FALSE(once == S::filling || once == S::evicting || once == S::awaiting_clean);
  }
}

TEST(Units, AddressesOffsetsAndCountsComputeAsBytes) {
  constexpr Address kStart{0x1000};
  static_assert(kStart + 4_KiB == Address{0x2000});
  static_assert((kStart + 4_KiB) - kStart == 4_KiB);
  static_assert(ByteOffset{7} + ByteCount{3} == ByteOffset{10});
  static_assert(2_MiB == 2048_KiB && 1_GiB == 1024_MiB && 4_KiB * 2 == 8_KiB);
  static_assert(ByteRange{.start = {3}, .length = {4}}.end() == ByteOffset{7});
  static_assert(align_up(0, 4096) == 0 && align_up(1, 4096) == 4096 && align_up(4096, 4096) == 4096);
  static_assert(align_down(4095, 4096) == 0 && align_down(4097, 4096) == 4096);
  EXPECT_TRUE((ByteRange{.start = {3}, .length = {0}}.empty()));
}

TEST(Units, FolioRangesOverlapWhereTheyShareAFolio) {
  const FolioRange range{.first = 4, .count = 3};
  EXPECT_TRUE(range.contains(4) && range.contains(6));
  EXPECT_FALSE(range.contains(3) || range.contains(7));
  EXPECT_TRUE(range.overlaps({.first = 6, .count = 9}));
  EXPECT_TRUE(range.overlaps({.first = 0, .count = 5}));
  EXPECT_FALSE(range.overlaps({.first = 7, .count = 1}));
  EXPECT_FALSE(range.overlaps({.first = 0, .count = 4}));
}

enum class Bit : std::uint32_t { a = 1, b = 2, c = 4 };

TEST(FlagSets, AreSets) {
  constexpr Flags<Bit> kAb{Bit::a, Bit::b};
  EXPECT_TRUE(kAb.has(Bit::a) && kAb.has(Bit::b));
  EXPECT_FALSE(kAb.has(Bit::c));
  EXPECT_TRUE(kAb.has_all({Bit::a, Bit::b}));
  EXPECT_FALSE(kAb.has_all({Bit::a, Bit::c}));
  EXPECT_TRUE(kAb.has_any({Bit::a, Bit::c}));
  EXPECT_FALSE(kAb.has_any(Bit::c));
  EXPECT_TRUE((kAb & Bit::c).empty());
  EXPECT_EQ((kAb | Bit::c).bits(), 7U);
}

TEST(Deadlines, PassWhenTheirTimeComes) {
  EXPECT_FALSE(Deadline::after(std::chrono::hours(1)).passed());
  EXPECT_TRUE(Deadline::at(Clock::now()).passed());
  const TimePoint when = Clock::now() + std::chrono::seconds(5);
  EXPECT_EQ(Deadline::at(when).when(), when);
}

}  // namespace
}  // namespace uffda
