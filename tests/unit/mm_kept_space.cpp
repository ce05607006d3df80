// What an address space keeps for a successor: random changes, and a death after each step; the successor shows the
// same.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "mm/kept_space.h"
#include "os/memory.h"
#include "support/mm_core_fixture.h"

namespace uffda {
namespace {

using namespace test;

class KeptSpaceTest : public CoreTest {
 protected:
  KeptSpaceTest()
      : memory_(*os::map_memory({align_up(sizeof(KeptSpace), kPageSize.value)}, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)) {}

  void SetUp() override {
    make_object(kPageSize * 64);
    space().close();
    fake_.emplace(core_);
    space().keep(kept(), nullptr);
  }
  KeptSpace& kept() { return *reinterpret_cast<KeptSpace*>(memory_.bytes().data()); }
  void show(std::uint64_t at, std::uint64_t pages, std::uint64_t from) {
    ASSERT_TRUE(space().attach(page(at), kPageSize * pages, object_, {from * kPageSize.value}));
  }
  void read_events(std::initializer_list<uffd_msg> events) {
    for (const uffd_msg& event : events) fake().push(event);
    std::vector<uffd_msg> messages(KeptSpace::kMessages);
    ASSERT_EQ(*space().drain(messages), events.size());
  }
  /// The server is dead: another one, over what is kept. Its mappings, page by page.
  void succeed() {
    fake_.emplace(core_);
    space().keep(kept(), nullptr);
    space().adopt([this](std::uint32_t) { return object_; }, [](int) { return false; });
  }
  std::vector<bool> shown() {
    std::vector<bool> pages(200);
    for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = space().maps(page(i));
    return pages;
  }

  os::MappedMemory memory_;
};

TEST_F(KeptSpaceTest, ASuccessorShowsTheSame) {
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    const std::uint64_t at = random() % 150;
    const std::uint64_t pages = 1 + random() % 32;
    switch (random() % 4) {
      case 0:
        space().detach(page(at), kPageSize * pages);
        break;
      case 1:
        read_events({unmap_event(page(at), kPageSize * pages)});
        break;
      case 2:
        read_events({remap_event(page(at), page(random() % 150), kPageSize * pages)});
        break;
      default:
        show(at, pages, random() % 32);
    }
    const std::vector<bool> before = shown();
    const std::size_t count = space().mapping_count();
    succeed();
    ASSERT_EQ(shown(), before) << i;
    ASSERT_EQ(space().mapping_count(), count) << i;
  }
}

TEST_F(KeptSpaceTest, WhatWasReadAndNotAppliedIsAppliedByTheSuccessor) {
  show(0, 10, 0);
  show(20, 10, 10);
  // Killed between the read and the first record.
  const std::span<uffd_msg> batch = MappingLog(kept()).begin_batch();
  batch[0] = fault_event(page(3));
  batch[1] = remap_event(page(0), page(40), kPageSize * 5);
  batch[2] = unmap_event(page(20), kPageSize * 4);
  succeed();
  EXPECT_FALSE(space().maps(page(0)));
  EXPECT_TRUE(space().maps(page(5)));
  EXPECT_TRUE(space().maps(page(44)));
  EXPECT_FALSE(space().maps(page(23)));
  EXPECT_TRUE(space().maps(page(24)));
  EXPECT_TRUE(std::ranges::all_of(kept().messages, [](const uffd_msg& message) { return message.event == 0; }));
}

TEST_F(KeptSpaceTest, WhatIsRecordedIsNotAppliedAgain) {
  show(0, 10, 0);
  const std::span<uffd_msg> batch = MappingLog(kept()).begin_batch();
  batch[0] = remap_event(page(0), page(40), kPageSize * 10);
  batch[1] = remap_event(page(40), page(0), kPageSize * 10);
  // Killed after the first record: applied twice, the first would take away what it moved.
  MappingLog(kept()).append({.start = page(0).value,
                             .length = (kPageSize * 10).value,
                             .other = page(40).value,
                             .kind = MappingRecord::Kind::move});
  succeed();
  EXPECT_TRUE(space().maps(page(0)));
  EXPECT_TRUE(space().maps(page(9)));
  EXPECT_FALSE(space().maps(page(40)));
}

TEST_F(KeptSpaceTest, MessagesAreReadWhereASuccessorFindsThem) {
  show(0, 10, 0);
  std::uint8_t seen = 0;
  fake().on_wake([&] { seen = kept().messages[0].event; });  // in the middle of applying
  read_events({unmap_event(page(0), kPageSize * 10)});
  EXPECT_EQ(seen, UFFD_EVENT_UNMAP);
  EXPECT_EQ(kept().messages[0].event, 0);
}

TEST_F(KeptSpaceTest, WhatWasDroppedStaysTheKernels) {
  ASSERT_TRUE(space().attach(page(0), kPageSize * 10, object_, {}, Sharing::copied));
  read_events({remove_event(page(2), kPageSize)});
  // Killed between the read of another one and its record.
  MappingLog(kept()).begin_batch()[0] = remove_event(page(5), kPageSize * 2);
  succeed();
  const std::vector<bool> wanted{true, true, false, true, true, false, false, true, true, true, false};
  for (std::uint64_t i = 0; i < wanted.size(); ++i) EXPECT_EQ(space().maps(page(i)), wanted[i]) << i;
  const auto calls = fake().calls();
  EXPECT_EQ(std::ranges::count(calls, FakeUserfault::Kind::unregister, &FakeUserfault::Call::kind), 1)
      << "once more, by the successor";
}

TEST_F(KeptSpaceTest, EveryFaultComesAgain) {
  show(0, 10, 0);
  succeed();
  EXPECT_NE(fake().wakes(page(4)), 0U);
}

TEST_F(KeptSpaceTest, AFullLogIsWrittenAnew) {
  show(0, 4, 0);
  show(10, 4, 0);
  const std::uint64_t half = KeptSpace::kRecords;
  for (std::uint64_t i = 0; i < 2 * half + 10; ++i) space().detach(page(100), kPageSize);
  EXPECT_LT(kept().head.load() % half, half);
  succeed();
  EXPECT_EQ(space().mapping_count(), 2U);
  EXPECT_TRUE(space().maps(page(13)));
}

}  // namespace
}  // namespace uffda
