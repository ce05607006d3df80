// What an object holds: bytes that come unasked, ranges that are given up, poison, eviction under a limit.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "support/mm_core_fixture.h"

namespace uffda {
namespace {

using test::CoreTest;
using test::kBase;
using test::page;
using test::Pattern;
using Page = test::FakeUserfault::Page;

using CoreCache = CoreTest;

std::vector<std::byte> pattern(std::uint64_t offset, std::uint64_t length) {
  std::vector<std::byte> bytes(length);
  Pattern::fill(bytes, offset);
  return bytes;
}

TEST_F(CoreCache, WhatIsSuppliedBeforeItIsTouchedIsNeverFetched) {
  make_object(kPageSize * 64);
  ASSERT_TRUE(tickets_->sink->supply({0}, pattern(0, kPageSize.value * 64)));
  for (std::uint64_t i = 0; i < 64; ++i) {
    fault(i);
    EXPECT_EQ(fake().page(page(i)), Page::mapped) << i;
    expect_bytes(i);
  }
  EXPECT_TRUE(tickets_->asked().empty());
  EXPECT_EQ(core_->resident(), kPageSize * 64);
}

TEST_F(CoreCache, PartsOfFoliosThatAreSuppliedAreIgnoredExceptAtTheEnd) {
  const std::uint64_t size = kPageSize.value * 6 + 100;
  make_object({size});
  ASSERT_TRUE(tickets_->sink->supply({kPageSize.value + 1}, pattern(kPageSize.value + 1, kPageSize.value * 3)));
  EXPECT_EQ(state(1), PageState::absent);
  EXPECT_EQ(state(2), PageState::clean);
  EXPECT_EQ(state(3), PageState::clean);
  EXPECT_EQ(state(4), PageState::absent);
  ASSERT_TRUE(tickets_->sink->supply({kPageSize.value * 6}, pattern(kPageSize.value * 6, 100)));
  EXPECT_EQ(state(6), PageState::clean);
  expect_bytes(6);
  ASSERT_TRUE(tickets_->sink->supply({kPageSize.value * 5 + 7}, pattern(kPageSize.value * 5 + 7, 50)));
  EXPECT_EQ(state(5), PageState::absent);
  EXPECT_EQ(tickets_->sink->supply({size - 1}, pattern(0, 2)).error().code(), Errc::out_of_range);
  EXPECT_EQ(tickets_->sink->supply({~0ULL}, pattern(0, 2)).error().code(), Errc::out_of_range);
}

TEST_F(CoreCache, PresentWinsOverWhatIsSupplied) {
  make_object(kPageSize * 8);
  fault(2);
  tickets_->answer_all();
  const std::vector<std::byte> other(kPageSize.value * 8, std::byte{0x55});
  ASSERT_TRUE(tickets_->sink->supply({0}, other));
  expect_bytes(2);
  EXPECT_EQ(state(1), PageState::clean);
}

TEST_F(CoreCache, WhatAFetchIsFillingStaysTheFetchs) {
  make_object(kPageSize * 8);
  fault(2);
  ASSERT_TRUE(tickets_->sink->supply({0}, pattern(0, kPageSize.value * 8)));
  EXPECT_EQ(state(2), PageState::filling);
  EXPECT_EQ(state(3), PageState::clean);
  EXPECT_EQ(fake().page(page(2)), Page::none);
  tickets_->answer_all();
  EXPECT_EQ(fake().page(page(2)), Page::mapped);
  for (std::uint64_t i = 0; i < 8; ++i) expect_bytes(i);
}

TEST_F(CoreCache, SuppliesAndFaultsRaceAndEveryByteIsRight) {
  constexpr std::uint64_t kPages = 1024;
  for (int round = 0; round < 8; ++round) {
    make_object_of(test::answering_source(kPageSize * kPages, test::answer), kPageSize * kPages);
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 2; ++t) {
      threads.emplace_back([&] {
        for (std::uint64_t i = 0; i < kPages; i += 16) {
          (void)object_->supply({i * kPageSize.value}, pattern(i * kPageSize.value, kPageSize.value * 16));
        }
      });
      threads.emplace_back([&, t] {
        std::mt19937_64 random(t);
        for (std::uint64_t i = 0; i < kPages; ++i) fault(t == 0 ? i : random() % kPages);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (std::uint64_t i = 0; i < kPages; ++i) ASSERT_EQ(state(i), PageState::clean) << i;
    std::vector<std::byte> bytes(kPageSize.value * kPages);
    ASSERT_TRUE(object_->read({0}, bytes, Deadline::after(test::kPatience)));
    ASSERT_EQ(Pattern::mismatch(bytes, 0), std::nullopt);
    EXPECT_EQ(object_->folios_present(), kPages);
    space().detach(kBase, kPageSize * kPages);
    object_.reset();
    fake().clear();
    EXPECT_EQ(core_->resident(), ByteCount{0});
  }
}

TEST_F(CoreCache, ARangeThatTheSourceGivesUpIsPoisonedWhereItIsAbsent) {
  make_object(kPageSize * 16);
  fault(2);
  tickets_->answer_all();
  ASSERT_TRUE(tickets_->sink->fail({.start = {kPageSize.value}, .length = kPageSize * 3}, Error(Errc::io, "gone")));
  EXPECT_EQ(state(0), PageState::absent);
  EXPECT_EQ(state(1), PageState::poisoned);
  EXPECT_EQ(state(2), PageState::clean);
  EXPECT_EQ(state(3), PageState::poisoned);
  EXPECT_EQ(state(4), PageState::absent);
  fault(3);
  EXPECT_EQ(fake().page(page(3)), Page::poisoned);
  EXPECT_EQ(failures(), 1U);
  EXPECT_EQ(tickets_->sink->fail({.start = {kPageSize.value * 16}, .length = {1}}, Error(Errc::io)).error().code(),
            Errc::out_of_range);
}

TEST_F(CoreCache, InvalidatedFoliosAreFetchedAnew) {
  make_object(kPageSize * 16);
  for (const std::uint64_t i : {1, 4}) fault(i);
  tickets_->answer_all();
  ASSERT_TRUE(tickets_->sink->invalidate({.start = {0}, .length = kPageSize * 16}));
  EXPECT_EQ(state(1), PageState::absent);
  EXPECT_EQ(core_->resident(), ByteCount{0});
  fake().clear();  // the hole unmapped it
  const std::size_t before = tickets_->asked().size();
  fault(1);
  EXPECT_GT(tickets_->asked().size(), before);
  tickets_->answer_all();
  EXPECT_EQ(fake().page(page(1)), Page::mapped);
}

TEST_F(CoreCache, AFetchThatWasUnderWayWhenItsRangeChangedShowsNothingOld) {
  make_object(kPageSize * 16);
  fault(1);
  auto old = tickets_->take();
  ASSERT_TRUE(old);
  std::ranges::fill(old->buffer(), std::byte{0xBD});
  ASSERT_TRUE(tickets_->sink->invalidate({.start = {0}, .length = kPageSize * 16}));
  std::move(*old).complete(kPageSize);
  EXPECT_NE(fake().page(page(1)), Page::mapped);
  EXPECT_GT(fake().wakes(page(1)), 0U) << "who waits comes again";
  fault(1);
  tickets_->answer_all();
  EXPECT_EQ(fake().page(page(1)), Page::mapped);
  expect_bytes(1);
}

TEST_F(CoreCache, AFolioInUseIsInvalidatedToo) {
  make_object(kPageSize * 16);
  fault(1);
  tickets_->answer_all();
  std::optional<FolioRef> pinned(std::move(*object_->find_folio(1)));
  std::thread invalidator([&] { EXPECT_TRUE(object_->invalidate({.start = {0}, .length = kPageSize * 16})); });
  pinned.reset();
  invalidator.join();
  EXPECT_EQ(state(1), PageState::absent);
}

TEST_F(CoreCache, PoisonIsLiftedWhereItWasTouched) {
  make_object(kPageSize * 16);
  fault(1);
  tickets_->fail_all(Error(Errc::io));
  ASSERT_EQ(fake().page(page(1)), Page::poisoned);
  // The kernel keeps its marker until something is mapped over it, and raises no fault there: the core has to act
  // unasked.
  ASSERT_TRUE(tickets_->sink->invalidate({.start = {0}, .length = kPageSize * 16}));
  tickets_->answer_all();
  EXPECT_EQ(fake().page(page(1)), Page::mapped);
  expect_bytes(1);

  for (int again = 0; again < 3 && fake().page(page(5)) == Page::none; ++again) {
    fault(5);
    tickets_->fail_all(Error(Errc::io));
  }
  ASSERT_EQ(fake().page(page(5)), Page::poisoned);
  ASSERT_TRUE(tickets_->sink->supply({kPageSize.value * 5}, pattern(kPageSize.value * 5, kPageSize.value)));
  EXPECT_EQ(fake().page(page(5)), Page::mapped);
  expect_bytes(5);
}

TEST_F(CoreCache, SynchronousReadersAndFaultsShareFetches) {
  make_object(kPageSize * 64);
  fault(5);
  std::vector<std::byte> bytes(100);
  std::thread reader(
      [&] { EXPECT_TRUE(object_->read({kPageSize.value * 5 + 50}, bytes, Deadline::after(test::kPatience))); });
  tickets_->answer_all();
  while (object_->states().get(5) != PageState::clean) tickets_->answer_all();
  reader.join();
  EXPECT_EQ(Pattern::mismatch(bytes, kPageSize.value * 5 + 50), std::nullopt);
  EXPECT_EQ(tickets_->asked().size(), 1U);
}

TEST_F(CoreCache, PopulateSaysWhyItCannot) {
  make_object(kPageSize * 8);
  const auto soon = [] { return Deadline::after(std::chrono::milliseconds(50)); };
  EXPECT_EQ(object_->populate({.start = {0}, .length = kPageSize}, soon()).error().code(), Errc::timed_out);
  tickets_->fail_all(Error(Errc::io));
  EXPECT_EQ(object_->populate({.start = {0}, .length = kPageSize}, Deadline::after(test::kPatience)).error().code(),
            Errc::io);
  EXPECT_EQ(object_->populate({.start = {kPageSize.value * 7}, .length = kPageSize * 2}, soon()).error().code(),
            Errc::out_of_range);
}

TEST_F(CoreCache, ResidentStaysBelowTheLimitAndBytesAreRightAfterEviction) {
  constexpr std::uint64_t kPages = 4096;
  const ByteCount limit = 2_MiB;
  make_core({.budget = limit});
  make_object_of(test::answering_source(kPageSize * kPages, test::answer), kPageSize * kPages);
  for (int pass = 0; pass < 2; ++pass) {
    for (std::uint64_t i = 0; i < kPages; i += 7) {
      fake().clear();
      fault(i);
      ASSERT_LE(core_->resident(), limit) << i;
      if (i % 70 == 0) expect_bytes(i);
    }
  }
  // How much is read ahead depends on how fast the source is; what is touched has no room in any case.
  EXPECT_GT(core_->stats().folios_evicted, kPages / 16);
  EXPECT_TRUE(fake().wait_until([&] {
    const std::uint64_t fetched = core_->stats().bytes_fetched / kPageSize.value;
    return object_->folios_present() + core_->stats().folios_evicted == fetched;
  })) << "what was fetched is there or was evicted";
}

TEST_F(CoreCache, TheOldestGoFirst) {
  make_core({.budget = 8_MiB});
  make_object_of(test::answering_source(kPageSize * 3072, test::answer), kPageSize * 3072);
  for (std::uint64_t chunk = 0; chunk < 40; ++chunk) {
    ASSERT_TRUE(object_->populate({.start = {chunk * 64 * kPageSize.value}, .length = kPageSize * 64},
                                  Deadline::after(test::kPatience)));
  }
  ASSERT_TRUE(fake().wait_until([&] { return core_->resident() <= ByteCount{8_MiB - 512_KiB}; }));
  bool present = false;
  for (std::uint64_t chunk = 0; chunk < 40; ++chunk) {
    const bool here = is_present(state(chunk * 64));
    EXPECT_TRUE(here || !present) << "chunk " << chunk << " is younger than one that stayed";
    present = present || here;
  }
  EXPECT_FALSE(is_present(state(0)));
  EXPECT_TRUE(present);
}

TEST_F(CoreCache, PinnedFoliosStayAndGoLater) {
  make_object_of(test::answering_source(kPageSize * 64, test::answer), kPageSize * 64);
  ASSERT_TRUE(object_->populate({.start = {0}, .length = kPageSize * 64}, Deadline::after(test::kPatience)));
  {
    const Result<FolioRef> pinned = object_->find_folio(17);
    ASSERT_TRUE(pinned);
    EXPECT_EQ(object_->evict_chunk(0), 63U);
    EXPECT_EQ(state(17), PageState::clean);
    expect_bytes(17);
  }
  EXPECT_EQ(object_->evict_chunk(0), 1U);
  EXPECT_EQ(core_->resident(), ByteCount{0});
  for (std::uint64_t i = 0; i < 64; ++i) expect_bytes(i);
}

TEST_F(CoreCache, TheLastPageIsEvictedWithItsTail) {
  make_object_of(test::answering_source({kPageSize.value * 3 + 10}, test::answer), kPageSize * 4);
  ASSERT_TRUE(
      object_->populate({.start = {0}, .length = {kPageSize.value * 3 + 10}}, Deadline::after(test::kPatience)));
  EXPECT_EQ(object_->evict_chunk(0), 4U);
  EXPECT_LT(::lseek(object_->backing().mapping_fd(), 0, SEEK_DATA), 0) << "no page is left, not even a zeroed one";
  std::vector<std::byte> bytes(10);
  ASSERT_TRUE(object_->backing().read({kPageSize.value * 3}, bytes));
  EXPECT_TRUE(std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; }))
      << "the page is gone, not only its tail";
  expect_bytes(3);
}

TEST_F(CoreCache, FaultsSuppliesEvictionAndReadsTogether) {
  constexpr std::uint64_t kPages = 512;
  make_core({.budget = 1_MiB});
  make_object_of(test::answering_source(kPageSize * kPages, test::answer), kPageSize * kPages);
  std::atomic<int> wrong{0};
  fake().on_continue([&](Address start, ByteCount length) {
    std::vector<std::byte> bytes(length.value);
    const std::uint64_t offset = start.value - kBase.value;
    if (!object_->backing().read({offset}, bytes) || Pattern::mismatch(bytes, offset)) ++wrong;
  });
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < 600; ++i) {
        fault(random() % kPages);
        if (i % 40 == 0) fake().clear();
      }
    });
  }
  threads.emplace_back([&] {
    std::mt19937_64 random(77);
    for (int i = 0; i < 200; ++i) (void)object_->evict_chunk(random() % (kPages / 64));
  });
  threads.emplace_back([&] {
    std::mt19937_64 random(78);
    std::vector<std::byte> bytes(20'000);
    for (int i = 0; i < 100; ++i) {
      const std::uint64_t at = random() % (kPages * kPageSize.value - bytes.size());
      if (!object_->read({at}, bytes, Deadline::after(test::kPatience)) || Pattern::mismatch(bytes, at)) ++wrong;
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(object_->folios_present(), kPages);
}

}  // namespace
}  // namespace uffda
