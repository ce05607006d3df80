// The budget: hard, with a reserve for what somebody waits for, shared fairly, and with an end to waiting for room.
#include <gtest/gtest.h>

#include <algorithm>
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
  budget.forget_wanted();
  EXPECT_FALSE(budget.is_short());
  EXPECT_TRUE(budget.wants_room());
  EXPECT_FALSE(budget.take(4_KiB, Reserve::leave));
  EXPECT_TRUE(budget.take(100_KiB, Reserve::use));
  EXPECT_TRUE(budget.is_short());
  EXPECT_FALSE(budget.take(4_KiB, Reserve::use));
  budget.give_back(300_KiB);
  budget.forget_wanted();
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

TEST(Budget, WhatWasRefusedIsMadeRoomFor) {
  Budget budget(9_MiB);
  ASSERT_TRUE(budget.take(8_MiB, Reserve::use));
  EXPECT_FALSE(budget.is_short());
  ASSERT_FALSE(budget.take(2_MiB, Reserve::spare));
  EXPECT_FALSE(budget.is_short()) << "nobody waits for it";
  ASSERT_FALSE(budget.take(2_MiB, Reserve::use));
  EXPECT_TRUE(budget.is_short());
  budget.give_back(2_MiB);
  EXPECT_FALSE(budget.wants_room());
  EXPECT_TRUE(budget.take(2_MiB, Reserve::use));
  EXPECT_TRUE(budget.is_short()) << "until what was refused is forgotten";
  budget.forget_wanted();
  EXPECT_FALSE(budget.is_short());
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
  /// Asks again when told to: the thread that makes room may have had no CPU.
  static Result<void> supply(MemoryObject& object, ByteOffset offset, std::span<const std::byte> bytes) {
    const Deadline deadline = Deadline::after(test::kPatience);
    Result<void> supplied = object.supply(offset, bytes);
    while (!supplied && supplied.error().code() == Errc::again && !deadline.passed())
      supplied = object.supply(offset, bytes);
    return supplied;
  }
};

TEST_F(CoreBudget, RoomIsTakenFromWhoeverHasMost) {
  make_core({.budget = 4_MiB});  // 1024 pages
  const auto modest = another(256);
  const auto greedy = another(8192);
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
      core_->create_object(test::answering_source(kPageSize * 16, test::answer), "shmem", kPageSize * 1);
  ASSERT_FALSE(too_small);
  EXPECT_EQ(too_small.error().code(), Errc::invalid_argument);
  EXPECT_NE(too_small.error().message().find("give at least 8192"), std::string::npos) << too_small.error().message();
}

// Of a size that is no multiple of anything: what is free is more than the reserve, and less than a folio.
TEST_F(CoreBudget, AFolioLargerThanWhatIsFreeFindsRoom) {
  make_core({.budget = {18 * 1024}});
  const auto object = another(64);
  for (std::uint64_t i = 0; i < 64; ++i) ASSERT_TRUE(populate(*object, i, 1)) << i;
  EXPECT_LE(core_->budget().used(), core_->budget().limit());
}

TEST_F(CoreBudget, WhatIsSuppliedUnaskedFindsRoomInAFullCacheToo) {
  make_core({.budget = 256_KiB});
  const auto object = another(512);
  std::vector<std::byte> bytes(1 << 20);
  test::Pattern::fill(bytes, 0);
  ASSERT_TRUE(supply(*object, {0}, bytes));
  ASSERT_TRUE(supply(*object, {0}, bytes)) << "once more";
  EXPECT_LE(core_->budget().used(), 256_KiB);
  EXPECT_GT(core_->stats().folios_evicted, 256U);
}

TEST_F(CoreBudget, WhatIsPoisonedIsShownOnceItsBytesFindRoom) {
  make_core({.budget = 64_KiB});
  make_object(kPageSize * 64);
  fault(40);
  tickets_->fail_all(Error(Errc::io));
  ASSERT_EQ(fake().page(test::page(40)), test::FakeUserfault::Page::poisoned);
  std::vector<std::byte> bytes(15 * kPageSize.value);
  test::Pattern::fill(bytes, 0);
  ASSERT_TRUE(supply(*object_, {0}, bytes));
  std::vector<FolioRef> pinned;
  for (FolioIndex i = 0; i < 15; ++i) pinned.push_back(*object_->find_folio(i));
  std::vector<std::byte> page(kPageSize.value);
  test::Pattern::fill(page, 40 * kPageSize.value);
  const auto refused = object_->supply({40 * kPageSize.value}, page);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Errc::again);
  EXPECT_EQ(state(40), PageState::poisoned) << "as before";
  pinned.clear();
  ASSERT_TRUE(supply(*object_, {40 * kPageSize.value}, page));
  EXPECT_EQ(fake().page(test::page(40)), test::FakeUserfault::Page::mapped) << "who was shown the poison is told";
  expect_bytes(40);
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

TEST_F(CoreBudget, ManyChunksThatMustStayDoNotKeepOthersFromGoing) {
  make_core({.budget = 1_MiB});
  const auto object = another(10'000);
  for (FolioIndex first = 0; first < 6400; first += 64) {
    ASSERT_TRUE(populate(*object, first, 64));
    for (FolioIndex i = first; i < first + 64; ++i) {
      const FolioRange one{.first = i, .count = 1};
      if (!object->states().pin(i)) continue;  // evicted already
      object->note_written(one);
      object->states().unpin(one);
    }
  }
  ASSERT_GT(core_->apart(), 16_MiB);
  for (FolioIndex i = 6400; i < 9000; i += 8) ASSERT_TRUE(populate(*object, i, 8)) << i;
  EXPECT_LE(core_->budget().used(), 1_MiB);
}

TEST_F(CoreBudget, AFolioThatIsUsedSurvivesAScanThatOneThatIsNotDoesNot) {
  make_core({.budget = 4_MiB});  // 1024 pages
  make_object_of(test::answering_source(kPageSize * 16'384, test::answer), kPageSize * 16'384);
  constexpr FolioIndex kUsed = 128;
  std::vector<FolioIndex> places(16'384 / 2);  // never neighbours, and in no order that is seen ahead
  for (FolioIndex i = 0; i < places.size(); ++i) places[i] = i * 2;
  std::ranges::shuffle(places, std::mt19937_64(1));
  const auto place = [&](FolioIndex i) { return places[i]; };
  const auto touch = [&](FolioIndex index) {
    // A hole unmaps nothing here.
    const bool mapped = is_present(state(index)) && fake().page(test::page(index)) == test::FakeUserfault::Page::mapped;
    if (!mapped) fault(index);
  };
  for (FolioIndex i = 0; i < 2 * kUsed; ++i) touch(place(i));
  std::uint64_t used_again = 0;
  for (FolioIndex i = 0; i < 4096; ++i) {
    ASSERT_TRUE(populate(*object_, place(2 * kUsed + i), 1));
    const FolioIndex used = place(i % kUsed);
    if (i >= 1024 && is_present(state(used))) ++used_again;
    touch(used);
    ASSERT_LE(core_->budget().used(), 4_MiB);
  }
  std::uint64_t unused = 0;
  for (FolioIndex i = kUsed; i < 2 * kUsed; ++i) unused += is_present(state(place(i))) ? 1 : 0;
  EXPECT_LT(unused, 8U) << "of 128";
  EXPECT_GT(used_again, 2900U) << "of 3072 touches";
}

TEST_F(CoreBudget, WhereEverythingIsUsedSomethingGoesAllTheSame) {
  make_core({.budget = 64_KiB});
  make_object_of(test::answering_source(kPageSize * 4096, test::answer), kPageSize * 4096);
  for (FolioIndex i = 0; i < 4096; ++i) {
    ASSERT_TRUE(populate(*object_, i, 1)) << i;
    object_->note_used({.first = 0, .count = 4096});
  }
  EXPECT_LE(core_->budget().used(), 64_KiB);
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
  // The evictor may have a hold of it for a moment longer.
  EXPECT_TRUE(fake().wait_until([&] { return core_->resident() == ByteCount{0}; }));
}

}  // namespace
}  // namespace uffda
