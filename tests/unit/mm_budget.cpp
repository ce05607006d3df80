// The budget: hard, with a reserve for what somebody waits for, shared fairly, and with an end to waiting for room.
#include <gtest/gtest.h>

#include <random>
#include <thread>
#include <vector>

#include "mm/budget.h"
#include "support/mm_core_fixture.h"

namespace uffda {
namespace {

using Reserve = Budget::Reserve;

TEST(Budget, IsNeverExceededAndLeavesAReserveToWhoWaits) {
  Budget budget(1600_KiB);
  EXPECT_FALSE(budget.take(1601_KiB, Reserve::use));
  EXPECT_FALSE(budget.take(1501_KiB, Reserve::leave));
  EXPECT_TRUE(budget.take(1500_KiB, Reserve::leave));
  EXPECT_FALSE(budget.is_short());
  EXPECT_TRUE(budget.wants_room());
  EXPECT_FALSE(budget.take(4_KiB, Reserve::leave));
  EXPECT_TRUE(budget.take(100_KiB, Reserve::use));
  EXPECT_TRUE(budget.is_short());
  EXPECT_FALSE(budget.take(4_KiB, Reserve::use));
  budget.give_back(300_KiB);
  EXPECT_FALSE(budget.wants_room());
  EXPECT_EQ(budget.used(), 1300_KiB);
}

TEST(Budget, ManyThreadsTakeAndGiveBackWithinIt) {
  Budget budget(64_KiB);
  std::atomic<std::uint64_t> held{0};
  std::atomic<bool> over{false};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 20'000; ++i) {
        const ByteCount bytes{1 + random() % (24 * 1024)};
        if (!budget.take(bytes, Reserve::use)) continue;
        if (held.fetch_add(bytes.value) + bytes.value > budget.limit().value) over = true;
        held.fetch_sub(bytes.value);
        budget.give_back(bytes);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(over);
  EXPECT_EQ(budget.used(), ByteCount{0});
}

TEST(Budget, SaysHowLongRoomHasBeenRefused) {
  Budget budget(64_KiB);
  ASSERT_TRUE(budget.take(64_KiB, Reserve::use));
  EXPECT_EQ(budget.refused_for(), Duration{});
  const TimePoint start = Clock::now();
  ASSERT_FALSE(budget.take(4_KiB, Reserve::use));
  while (Clock::now() < start + std::chrono::milliseconds(20)) ASSERT_FALSE(budget.take(4_KiB, Reserve::use));
  EXPECT_GE(budget.refused_for(), std::chrono::milliseconds(10));
  budget.give_back(64_KiB);
  EXPECT_EQ(budget.refused_for(), Duration{}) << "there is room again";
}

class CoreBudget : public test::CoreTest {
 protected:
  std::shared_ptr<MemoryObject> another(std::uint64_t pages, ByteCount budget = {}) {
    auto object = core_->create_object(test::answering_source(kPageSize * pages, test::answer), "shmem", budget);
    EXPECT_TRUE(object) << object.error().message();
    return object ? *object : nullptr;
  }
  static Result<void> populate(MemoryObject& object, std::uint64_t first, std::uint64_t count) {
    return object.populate({.start = {first * kPageSize.value}, .length = kPageSize * count},
                           Deadline::after(test::kPatience));
  }
};

TEST_F(CoreBudget, RoomIsTakenFromWhoeverHasMost) {
  make_core({.budget = 4_MiB});  // 1024 pages
  const auto greedy = another(8192);
  const auto modest = another(256);
  ASSERT_TRUE(populate(*modest, 0, 256));
  for (std::uint64_t at = 0; at < 8192; at += 64) ASSERT_TRUE(populate(*greedy, at, 64)) << at;
  EXPECT_EQ(modest->folios_present(), 256U) << "less than half of the budget";
  EXPECT_LE(core_->budget().used(), 4_MiB);
  EXPECT_GT(greedy->folios_present(), 500U);
}

TEST_F(CoreBudget, AnObjectKeepsWithinItsOwn) {
  make_core({.budget = 4_MiB});
  const auto small = another(4096, 256_KiB);
  for (std::uint64_t at = 0; at < 4096; at += 16) {
    ASSERT_TRUE(populate(*small, at, 16));
    ASSERT_LE(small->folios_present(), 64U);
  }
  EXPECT_EQ(core_->budget().used(), small->budget().used());
  const auto too_small =
      core_->create_object(test::answering_source(kPageSize * 16, test::answer), "shmem", kPageSize * 3);
  ASSERT_FALSE(too_small);
  EXPECT_EQ(too_small.error().code(), Errc::invalid_argument);
  EXPECT_NE(too_small.error().message().find("give at least 16384"), std::string::npos) << too_small.error().message();
}

TEST_F(CoreBudget, WaitingForRoomThatNeverComesEndsInSigbusAndThePageComesWhenThereIsSome) {
  make_core(
      {.budget = 64_KiB, .warn_after = std::chrono::milliseconds(20), .deadline = std::chrono::milliseconds(100)});
  make_object_of(test::answering_source(kPageSize * 64, test::answer), kPageSize * 64);
  std::vector<FolioRef> pinned;
  for (FolioIndex i = 0; i < 16; ++i) {
    ASSERT_TRUE(populate(*object_, i, 1));
    auto folio = object_->find_folio(i);
    ASSERT_TRUE(folio);
    pinned.push_back(*std::move(folio));
  }
  EXPECT_EQ(core_->budget().used(), 64_KiB);
  std::vector<std::byte> bytes(16);
  const auto read = object_->read({kPageSize.value * 40}, bytes, Deadline::after(std::chrono::milliseconds(50)));
  ASSERT_FALSE(read);
  EXPECT_NE(read.error().message().find("no room"), std::string::npos) << read.error().message();
  const Deadline patience = Deadline::after(test::kPatience);
  while (fake().page(test::page(40)) != test::FakeUserfault::Page::poisoned && !patience.passed()) {
    fault(40);
    ASSERT_LE(core_->budget().used(), 64_KiB);
  }
  EXPECT_EQ(fake().page(test::page(40)), test::FakeUserfault::Page::poisoned);
  EXPECT_GE(failures(), 1U) << "an operator hears of it";
  pinned.clear();
  ASSERT_TRUE(populate(*object_, 40, 1)) << "it is no failure of the source";
  expect_bytes(40);
}

TEST_F(CoreBudget, WhatIsWrittenCountsApart) {
  make_core({.budget = 64_KiB});
  make_object_of(test::answering_source(kPageSize * 64, test::answer), kPageSize * 64);
  ASSERT_TRUE(populate(*object_, 0, 4));
  {
    const auto run = object_->states().pin_first_run({.first = 0, .count = 4});
    ASSERT_EQ(run.count, 4U);
    object_->note_written(run);
    object_->note_written(run);
    object_->states().unpin(run);
  }
  EXPECT_EQ(core_->apart(), kPageSize * 4);
  EXPECT_EQ(core_->budget().used(), kPageSize * (object_->folios_present() - 4));
  ASSERT_TRUE(populate(*object_, 8, 32));
  for (FolioIndex i = 0; i < 4; ++i) EXPECT_EQ(state(i), PageState::dirty) << "not evicted";
  space().detach(test::kBase, kPageSize * 64);
  object_.reset();
  EXPECT_EQ(core_->resident(), ByteCount{0});
}

}  // namespace
}  // namespace uffda
