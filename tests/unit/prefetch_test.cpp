// Prefetching: what is planned, when it stops, and that a fault never waits behind it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <thread>

#include "monitors/background_fill.h"
#include "monitors/prefetch_plan.h"
#include "monitors/prefetch_tracker.h"
#include "support/mm_core_fixture.h"

namespace uffda {
namespace {

using test::CoreTest;
using testing::ElementsAre;
using Page = test::FakeUserfault::Page;

constexpr PrefetchTarget kTarget{.size = 1_GiB, .folio_size = kPageSize};

TEST(PrefetchPlan, NeighboursMakeOneReadWhateverTheirOrder) {
  EXPECT_THAT(plan_prefetch({{9, 1}, {8, 1}, {10, 2}}, kTarget), ElementsAre(FolioRange{8, 4}));
}

TEST(PrefetchPlan, ASmallGapIsReadAndALargeOneIsNot) {
  EXPECT_THAT(plan_prefetch({{0, 1}, {17, 1}, {100, 1}}, kTarget), ElementsAre(FolioRange{0, 18}, FolioRange{100, 1}));
}

TEST(PrefetchPlan, WhatIsTouchedLongAfterIsReadAfter) {
  const auto plan = plan_prefetch({{100'000, 2048}, {0, 1}}, kTarget);
  ASSERT_EQ(plan.size(), 9U);
  EXPECT_EQ(plan.front(), (FolioRange{100'000, 256}));
  EXPECT_EQ(plan.back(), (FolioRange{0, 1}));
}

TEST(PrefetchPlan, ReadsAreWholeUnitsWithinTheObjectAndCoverWhatIsWanted) {
  std::mt19937_64 random(1);
  for (const std::uint64_t unit : {1U, 16U}) {
    const PrefetchTarget target{.size = {40'000 * 4096 + 5}, .folio_size = kPageSize, .unit = kPageSize * unit};
    std::vector<FolioRange> wanted;
    for (int i = 0; i < 2000; ++i) {
      const FolioIndex first = random() % 40'000;
      wanted.push_back({.first = first, .count = std::min<std::uint64_t>(1 + random() % 700, 40'001 - first)});
    }
    std::set<FolioIndex> read;
    for (const FolioRange range : plan_prefetch(wanted, target)) {
      EXPECT_EQ(range.first % unit, 0U);
      EXPECT_LE(range.count, 256U);
      EXPECT_LE(range.end(), 40'001U);
      EXPECT_TRUE(range.end() % unit == 0 || range.end() == 40'001);
      for (FolioIndex i = range.first; i < range.end(); ++i) read.insert(i);
    }
    for (const FolioRange range : wanted) {
      for (FolioIndex i = range.first; i < range.end(); ++i) ASSERT_TRUE(read.contains(i)) << i;
    }
  }
}

TEST(PrefetchPlan, ARecordingOfOtherFoliosFits) {
  const WorkingSet set{.name = "",
                       .size = {10 * 4096 + 1},
                       .folio_size = kPageSize,
                       .complete = true,
                       .runs = {{.folios = {.first = 9, .count = 2}, .at = {}}}};
  EXPECT_THAT(recorded_folios(set, {.size = set.size, .folio_size = kPageSize}), ElementsAre(FolioRange{9, 2}));
  EXPECT_THAT(recorded_folios(set, {.size = set.size, .folio_size = 2_MiB}), ElementsAre(FolioRange{0, 1}));
}

constexpr PrefetchRoom kMuchRoom{.resident = {}, .in_flight = 8_MiB, .limit = 1_GiB};

TEST(WhyAPrefetchStops, NotWhileItHelps) {
  EXPECT_EQ(why_stop({}, {}, kMuchRoom), FillEnd::running);
  EXPECT_EQ(why_stop({.prefetched = 100'000}, {}, kMuchRoom), FillEnd::running) << "nobody has touched anything yet";
  EXPECT_EQ(why_stop({.prefetched = 9000, .hits = 5000, .strays = 4000}, {}, kMuchRoom), FillEnd::running);
}

TEST(WhyAPrefetchStops, WhatIsTouchedIsNotWhatWasRecorded) {
  EXPECT_EQ(why_stop({.prefetched = 9000, .hits = 10, .strays = 600}, {}, kMuchRoom), FillEnd::useless);
  EXPECT_EQ(why_stop({.prefetched = 9000, .hits = 10, .strays = 400}, {}, kMuchRoom), FillEnd::running) << "too few";
  const PrefetchCounts good{.prefetched = 9000, .hits = 5000};
  EXPECT_EQ(why_stop({.prefetched = 9999, .hits = 5010, .strays = 600}, good, kMuchRoom), FillEnd::useless)
      << "it helped before, and does not now";
}

TEST(WhyAPrefetchStops, WhatItBringsIsEvictedUnread) {
  EXPECT_EQ(why_stop({.prefetched = 9000, .hits = 0, .evicted_unread = 2000}, {}, kMuchRoom), FillEnd::evicted);
  EXPECT_EQ(why_stop({.prefetched = 300, .hits = 0, .evicted_unread = 100}, {}, kMuchRoom), FillEnd::running);
}

TEST(WhyAPrefetchStops, TheResidentLimitIsNear) {
  EXPECT_EQ(why_stop({}, {}, {.resident = 56_MiB, .in_flight = 4_MiB, .limit = 64_MiB}), FillEnd::memory);
  EXPECT_EQ(why_stop({}, {}, {.resident = 40_MiB, .in_flight = 4_MiB, .limit = 64_MiB}), FillEnd::running);
}

TEST(RateLimits, AreKept) {
  RateLimit rate(1_MiB);
  TimePoint now{std::chrono::hours(1)};
  const TimePoint start = now;
  for (int i = 0; i < 100; ++i) now += rate.take(64_KiB, now);
  const double seconds = std::chrono::duration<double>(now - start).count();
  EXPECT_NEAR(seconds, 99.0 * 64 / 1024 - 0.1, 0.07) << "all but the last, and a burst of a tenth of a second";
  EXPECT_EQ(RateLimit({}).take(1_GiB, now), Duration{});
}

TEST(RateLimits, ALowRateIsSteady) {
  EXPECT_EQ(RateLimit({}).step(1_MiB, kPageSize), 1_MiB);
  EXPECT_EQ(RateLimit(1_MiB).step(1_MiB, kPageSize), (ByteCount{25 * 4096}));
  EXPECT_EQ(RateLimit({100}).step(1_MiB, kPageSize), kPageSize);
}

TEST(PrefetchTracking, CountsHitsStraysAndWaste) {
  const std::vector<FolioRange> wanted{{10, 10}};
  auto made = PrefetchTracker::create(100, wanted);
  ASSERT_TRUE(made);
  PrefetchTracker& tracker = **made;
  tracker.touched({10, 1});  // before it was prefetched: neither
  tracker.prefetched({11, 9});
  tracker.touched({11, 2});
  tracker.touched({11, 2});
  tracker.touched({50, 3});
  tracker.evicted({0, 15});
  const PrefetchCounts counts = tracker.counts();
  EXPECT_EQ(counts.prefetched, 9U);
  EXPECT_EQ(counts.hits, 2U);
  EXPECT_EQ(counts.strays, 3U);
  EXPECT_EQ(counts.evicted_unread, 2U) << "13 and 14";
}

TEST(PrefetchTracking, ATouchThatComesFirstIsAHit) {
  auto tracker = PrefetchTracker::create(100, std::vector<FolioRange>{{0, 100}});
  ASSERT_TRUE(tracker);
  (*tracker)->touched({7, 1});
  (*tracker)->prefetched({0, 16});
  EXPECT_EQ((*tracker)->counts().hits, 1U);
}

class Prefetching : public CoreTest {
 protected:
  std::uint64_t present() {
    std::uint64_t present = 0;
    for (FolioIndex i = 0; i < object_->folios(); ++i) present += is_present(state(i)) ? 1 : 0;
    return present;
  }
  /// Prefetches until there is no room, whatever the limit of bytes. The number of requests.
  std::size_t prefetch_all_there_is_room_for() {
    std::size_t requests = 0;
    FolioIndex at = 0;
    while (true) {
      const auto step = object_->prefetch({.first = at, .count = 256}, 1_GiB);
      if (!step) {
        EXPECT_EQ(step.error().code(), Errc::again);
        return requests;
      }
      at = step->next;
      ++requests;
    }
  }
};

TEST_F(Prefetching, AFaultIsAskedOfTheSourceAtOnceHoweverMuchIsPrefetched) {
  make_object(1_GiB);
  const std::size_t prefetches = prefetch_all_there_is_room_for();
  ASSERT_GT(prefetches, 0U);
  ASSERT_EQ(tickets_->held(), prefetches);
  // As many as there can be threads that wait.
  for (FolioIndex i = 0; i < 32; ++i) {
    const FolioIndex index = 200'000 + 1000 * i + i * i * 37 % 500;  // no stride, or more would be asked for
    fault(index);
    ASSERT_EQ(tickets_->held(), prefetches + i + 1) << "fault " << i << " was not asked of the source";
    EXPECT_EQ(tickets_->asked().back().start.value, index * 4096);
  }
  tickets_->answer_all();
  EXPECT_EQ(fake().page(test::page(200'000)), Page::mapped);
}

TEST_F(Prefetching, ASequentialReaderFindsLargeBuffersToo) {
  make_object(1_GiB);
  const std::size_t prefetches = prefetch_all_there_is_room_for();
  for (FolioIndex i = 200'000; i < 200'300; ++i) {
    fault(i);
    while (tickets_->held() > prefetches) {  // everything but the prefetches is answered
      auto ticket = tickets_->take(tickets_->asked().back().start);
      if (!ticket) break;
      test::answer(std::move(*ticket));
    }
  }
  EXPECT_TRUE(std::ranges::any_of(tickets_->asked(), [](ByteRange range) {
    return range.start.value >= 200'000 * 4096ULL && range.length >= 512_KiB;
  }));
  tickets_->answer_all();
}

TEST_F(Prefetching, TheParallelismOfASourceIsNotUsedUp) {
  struct Narrow final : PageSource {
    explicit Narrow(std::shared_ptr<test::Tickets> to) : tickets(std::move(to)) {
      opened("narrow", {.size = 1_GiB, .parallel = 4});
    }
    void do_fetch(FetchTicket ticket) noexcept override { tickets->add(std::move(ticket)); }
    std::shared_ptr<test::Tickets> tickets;
  };
  make_object_of(std::make_unique<Narrow>(tickets_), 1_GiB);
  EXPECT_EQ(prefetch_all_there_is_room_for(), 1U);
  for (FolioIndex i = 1; i < 4; ++i) {
    fault(200'000 * i / 4);
    EXPECT_EQ(tickets_->held(), 1 + i);
  }
  fault(222'222);
  EXPECT_EQ(tickets_->held(), 4U) << "it comes again when the source has answered";
  tickets_->answer_all();
}

TEST_F(Prefetching, BytesInFlightAreBounded) {
  make_object(1_GiB);
  EXPECT_TRUE(object_->prefetch({.first = 0, .count = 256}, 1_MiB));
  EXPECT_EQ(object_->prefetch({.first = 256, .count = 256}, 1_MiB).error().code(), Errc::again);
  tickets_->answer_all();
  EXPECT_TRUE(object_->prefetch({.first = 256, .count = 256}, 1_MiB));
  EXPECT_EQ(object_->prefetches_under_way(), 1U);
  tickets_->answer_all();
  EXPECT_EQ(object_->prefetches_under_way(), 0U);
}

TEST_F(Prefetching, WhatIsThereOrUnderWayIsNotAskedForAgain) {
  make_object(kPageSize * 64);
  fault(3);
  auto step = object_->prefetch({.first = 3, .count = 4}, 1_MiB);
  ASSERT_TRUE(step);
  EXPECT_EQ(step->asked, (FolioRange{4, 3}));
  step = object_->prefetch({.first = 3, .count = 4}, 1_MiB);
  ASSERT_TRUE(step);
  EXPECT_TRUE(step->asked.empty());
  EXPECT_EQ(step->next, 7U);
  fault(5);  // joins it
  EXPECT_EQ(tickets_->asked().size(), 2U);
  tickets_->answer_all();
  EXPECT_EQ(fake().page(test::page(5)), Page::mapped);
  expect_bytes(5);
}

TEST_F(Prefetching, AFailureIsNobodysSigbus) {
  make_object(kPageSize * 64);
  ASSERT_TRUE(object_->prefetch({.first = 8, .count = 1}, 1_MiB));
  tickets_->fail_all(Error(Errc::io, "for now"));
  EXPECT_EQ(state(8), PageState::absent);
  EXPECT_EQ(failures(), 0U);
  fault(8);
  tickets_->answer_all();
  EXPECT_EQ(fake().page(test::page(8)), Page::mapped);
}

/// Answers as long as it lives.
class Answering {
 public:
  explicit Answering(test::Tickets& tickets)
      : thread_([this, &tickets] {
          while (!ending_) tickets.answer_all();
        }) {}
  ~Answering() {
    ending_ = true;
    thread_.join();
  }
  Answering(const Answering&) = delete;
  Answering& operator=(const Answering&) = delete;

 private:
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

WorkingSet recorded(const MemoryObject& object, std::vector<FolioRange> folios) {
  WorkingSet set{.name = "it", .size = object.size(), .folio_size = object.folio_size(), .complete = true, .runs = {}};
  for (const FolioRange range : folios) set.runs.push_back({.folios = range, .at = {}});
  return set;
}

TEST_F(Prefetching, ARecordingIsFetchedInItsOrderAndItsHitsAreCounted) {
  make_object(1_GiB);
  const auto fill = prefetch_working_set(object_, recorded(*object_, {{100'000, 4096}, {5, 1}, {7, 1}}));
  ASSERT_TRUE(fill) << fill.error().message();
  {
    const Answering answering(*tickets_);
    const auto end = fill->wait(Deadline::after(test::kPatience));
    ASSERT_TRUE(end);
    EXPECT_EQ(end->end, FillEnd::complete);
    EXPECT_EQ(end->wanted, kPageSize * 4098);
    EXPECT_EQ(end->done, end->wanted);
  }
  const std::vector<ByteRange> asked = tickets_->asked();
  EXPECT_EQ(asked.front().start.value, 100'000ULL * 4096);
  EXPECT_EQ(asked.back(), (ByteRange{.start = {5 * 4096}, .length = kPageSize * 3}));
  fault(5);
  fault(100'001);
  EXPECT_EQ(tickets_->asked().size(), asked.size()) << "nothing is asked for twice";
  EXPECT_EQ(fill->progress().hit, kPageSize * 2);
}

TEST_F(Prefetching, ItStopsWhenSomethingElseIsTouched) {
  make_object(1_GiB);
  const auto fill = prefetch_working_set(object_, recorded(*object_, {{0, 200'000}}));
  ASSERT_TRUE(fill);
  object_->note_touched({.first = 210'000, .count = 2 * kJudgedFolios});
  const Answering answering(*tickets_);
  const auto end = fill->wait(Deadline::after(test::kPatience));
  ASSERT_TRUE(end);
  EXPECT_EQ(end->end, FillEnd::useless);
  EXPECT_LT(end->done, end->wanted);
}

TEST_F(Prefetching, ItStopsBelowTheBudget) {
  make_core({.budget = 32_MiB});
  make_object(1_GiB);
  const auto fill = prefetch_working_set(object_, recorded(*object_, {{0, 200'000}}));
  ASSERT_TRUE(fill);
  const Answering answering(*tickets_);
  const auto end = fill->wait(Deadline::after(test::kPatience));
  ASSERT_TRUE(end);
  EXPECT_EQ(end->end, FillEnd::memory);
  EXPECT_LE(core_->resident(), 32_MiB);
  EXPECT_EQ(core_->stats().folios_evicted, 0U);
}

TEST_F(Prefetching, ItStopsWhereOneReadFindsNoRoomThoughAnEighthIsLeft) {
  make_core({.budget = 4_MiB});
  make_object(1_GiB);
  const auto fill = prefetch_working_set(object_, recorded(*object_, {{0, 200'000}}));
  ASSERT_TRUE(fill);
  const Answering answering(*tickets_);
  const auto end = fill->wait(Deadline::after(test::kPatience));
  ASSERT_TRUE(end);
  EXPECT_EQ(end->end, FillEnd::memory);
  EXPECT_EQ(core_->stats().folios_evicted, 0U);
}

TEST_F(Prefetching, StoppingWaitsForNoAnswer) {
  make_object(1_GiB);
  {
    const auto fill = prefetch_working_set(object_, recorded(*object_, {{0, 200'000}}));
    ASSERT_TRUE(fill);
    ASSERT_TRUE(tickets_->wait_for(1));
    fill->stop();
    const auto end = fill->wait(Deadline::after(test::kPatience));
    ASSERT_TRUE(end);
    EXPECT_EQ(end->end, FillEnd::stopped);
  }
  tickets_->answer_all();
}

TEST_F(Prefetching, PopulatingSkipsWhatTheSourceKnowsAsZero) {
  struct Sparse final : PageSource {
    explicit Sparse(std::shared_ptr<test::Tickets> to) : tickets(std::move(to)) { opened("sparse", {.size = 64_MiB}); }
    void do_fetch(FetchTicket ticket) noexcept override { tickets->add(std::move(ticket)); }
    Result<std::vector<Extent>> do_extents(ByteRange range) override {
      const ByteOffset data{(32_MiB).value};
      if (range.start >= data) return std::vector{Extent{.range = range}};
      return std::vector{
          Extent{.range = {.start = range.start, .length = data - range.start}, .kind = Extent::Kind::zero}};
    }
    std::shared_ptr<test::Tickets> tickets;
  };
  make_object_of(std::make_unique<Sparse>(tickets_), 64_MiB);
  const BackgroundFill fill = populate_in_background({object_});
  const Answering answering(*tickets_);
  const auto end = fill.wait(Deadline::after(test::kPatience));
  ASSERT_TRUE(end);
  EXPECT_EQ(end->end, FillEnd::complete);
  EXPECT_EQ(end->zero, 32_MiB);
  EXPECT_EQ(end->done, 64_MiB);
  EXPECT_EQ(end->left, ByteCount{});
  EXPECT_EQ(present(), 32ULL * 256);
}

TEST_F(Prefetching, PopulatingSaysWhatCouldNotBeHad) {
  make_object_of(test::answering_source({4 * 4096 * 256},
                                        [](FetchTicket ticket) {
                                          if (ticket.range().start <= ByteOffset{4096 * 10} &&
                                              ticket.range().end() > ByteOffset{4096 * 10}) {
                                            std::move(ticket).fail(Error(Errc::io, "bad"));
                                          } else {
                                            test::answer(std::move(ticket));
                                          }
                                        }),
                 {4 * 4096 * 256});
  const BackgroundFill fill = populate_in_background({object_});
  const auto end = fill.wait(Deadline::after(test::kPatience));
  ASSERT_TRUE(end);
  EXPECT_EQ(end->end, FillEnd::complete);
  EXPECT_EQ(end->left, kPageSize);
  EXPECT_EQ(present(), 4ULL * 256 - 1);
  EXPECT_EQ(failures(), 0U) << "nobody waited for it";
}

}  // namespace
}  // namespace uffda
