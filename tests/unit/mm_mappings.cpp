// The list of mappings of an address space: random operations compared with a table that has one entry per page.
//
// The objects are of a type without a page cache, so that a fault copies bytes to its address, and the bytes tell which
// object and which offset the address space believes to be there.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <random>

#include "memtypes/builtin.h"
#include "mm/address_space.h"
#include "mm/core.h"
#include "support/mm_fake_userfault.h"
#include "support/mm_tickets.h"

namespace uffda {
namespace {

using test::FakeSpace;
using Page = test::FakeUserfault::Page;

constexpr Address kArena{0x7000'0000'0000};
constexpr std::uint64_t kArenaPages = 96;
constexpr std::uint64_t kObjectPages = 40;

Address arena_page(std::uint64_t index) { return kArena + kPageSize * index; }

/// Every 8 bytes hold the object's number and the offset.
void label(std::uint64_t object, FetchTicket ticket) {
  const std::span<std::byte> buffer = ticket.buffer();
  for (std::size_t i = 0; i + 8 <= buffer.size(); i += 8) {
    const std::uint64_t word = object << 56U | (ticket.range().start.value + i);
    std::memcpy(buffer.data() + i, &word, sizeof word);
  }
  const ByteCount all = ticket.range().length;
  std::move(ticket).complete(all);
}

class Mappings : public testing::TestWithParam<unsigned> {
 protected:
  struct Shown {
    std::uint64_t object;
    std::uint64_t offset;
  };

  void SetUp() override {
    auto core = Core::create({});
    ASSERT_TRUE(core);
    core_ = *core;
    ASSERT_TRUE(register_builtin_types(core_->types()));
    for (std::uint64_t i = 0; i < objects_.size(); ++i) {
      auto object = core_->create_object(
          test::answering_source(kPageSize * kObjectPages, [i](FetchTicket t) { label(i + 1, std::move(t)); }), "anon");
      ASSERT_TRUE(object);
      objects_.at(i) = *object;
    }
    fake_.emplace(core_);
  }

  void attach(std::uint64_t at, std::uint64_t pages, std::uint64_t object, std::uint64_t offset) {
    ASSERT_TRUE(
        fake_->space->attach(arena_page(at), kPageSize * pages, objects_.at(object), {offset * kPageSize.value}));
    for (std::uint64_t i = 0; i < pages; ++i) model_[at + i] = {.object = object + 1, .offset = offset + i};
  }
  void cut(std::uint64_t at, std::uint64_t pages) {
    for (std::uint64_t i = 0; i < pages; ++i) model_.erase(at + i);
  }
  void remap(std::uint64_t from, std::uint64_t to, std::uint64_t pages) {
    std::map<std::uint64_t, Shown> moved;
    for (std::uint64_t i = 0; i < pages; ++i) {
      if (const auto at = model_.find(from + i); at != model_.end()) moved.emplace(to + i, at->second);
    }
    cut(from, pages);
    cut(to, pages);
    model_.merge(moved);
  }
  void event(const uffd_msg& message) {
    fake_->userfault->push(message);
    std::array<uffd_msg, 16> messages{};
    ASSERT_TRUE(fake_->space->drain(messages));
  }

  void compare() {
    testing::internal::CaptureStderr();  // faults at unknown addresses are reported
    compare_pages();
    testing::internal::GetCapturedStderr();
  }
  void compare_pages() {
    for (std::uint64_t i = 0; i < kArenaPages; ++i) {
      const auto shown = model_.find(i);
      ASSERT_EQ(fake_->space->maps(arena_page(i)), shown != model_.end()) << i;
      fake_->userfault->clear();
      fake_->space->handle_fault(arena_page(i));
      if (shown == model_.end()) {  // not at once: somebody may be about to tell of it
        ASSERT_EQ(fake_->userfault->page(arena_page(i)), Page::none) << i << ": nothing is known there";
        continue;
      }
      if (shown->second.offset >= kObjectPages) {
        ASSERT_EQ(fake_->userfault->page(arena_page(i)), Page::poisoned) << i << ": beyond the end";
        continue;
      }
      ASSERT_EQ(fake_->userfault->page(arena_page(i)), Page::mapped) << i;
      std::uint64_t word = 0;
      std::memcpy(&word, fake_->userfault->copied(arena_page(i)).data(), sizeof word);
      ASSERT_EQ(word >> 56U, shown->second.object) << i;
      ASSERT_EQ(word & ~(0xFFULL << 56U), shown->second.offset * kPageSize.value) << i;
    }
  }

  std::shared_ptr<Core> core_;
  std::array<std::shared_ptr<MemoryObject>, 3> objects_;
  std::optional<FakeSpace> fake_;
  std::map<std::uint64_t, Shown> model_;
};

TEST_P(Mappings, AgreeWithATableOfPages) {
  std::mt19937_64 random(GetParam());
  const auto some = [&](std::uint64_t below) { return random() % below; };
  for (int step = 0; step < 60; ++step) {
    const std::uint64_t pages = 1 + some(20);
    const std::uint64_t at = some(kArenaPages - pages);
    switch (some(4)) {
      case 0:
      case 1:
        attach(at, pages, some(objects_.size()), some(kObjectPages));
        break;
      case 2:
        if (some(2) == 0) {
          event(test::unmap_event(arena_page(at), kPageSize * pages));
        } else {
          fake_->space->detach(arena_page(at), kPageSize * pages);
        }
        cut(at, pages);
        break;
      default: {
        const std::uint64_t to = some(kArenaPages - pages);
        if (to < at + pages && at < to + pages) break;  // mremap refuses it
        event(test::remap_event(arena_page(at), arena_page(to), kPageSize * pages));
        remap(at, to, pages);
      }
    }
    if (step % 6 == 0) compare();
    if (HasFatalFailure()) FAIL() << "step " << step;
  }
  compare();
}

INSTANTIATE_TEST_SUITE_P(Seeds, Mappings, testing::Range(1U, 9U));

using MappingEdges = Mappings;

TEST_P(MappingEdges, AttachRefusesWhatCannotBeShown) {
  AddressSpace& space = *fake_->space;
  const auto code = [&](Address start, std::uint64_t length, std::uint64_t offset) {
    const auto attached = space.attach(start, {length}, objects_[0], {offset});
    return attached ? std::optional<Errc>{} : attached.error().code();
  };
  EXPECT_EQ(code({kArena.value + 1}, 4096, 0), Errc::invalid_argument);
  EXPECT_EQ(code(kArena, 4095, 0), Errc::invalid_argument);
  EXPECT_EQ(code(kArena, 0, 0), Errc::invalid_argument);
  EXPECT_EQ(code(kArena, 4096, 7), Errc::invalid_argument);
  EXPECT_EQ(code(kArena, 4096, kObjectPages * 4096), Errc::invalid_argument);
  EXPECT_EQ(code({~0ULL - 4095}, 8192, 0), Errc::invalid_argument);
  EXPECT_EQ(space.mapping_count(), 0U);
}

TEST_P(MappingEdges, AttachHasALimit) {
  AddressSpace& space = *fake_->space;
  Result<void> attached;
  std::size_t count = 0;
  for (; attached && count <= AddressSpace::kMaxMappings; ++count) {
    attached = space.attach(kArena + kPageSize * (2 * count), kPageSize, objects_[0], {});
  }
  ASSERT_FALSE(attached);
  EXPECT_EQ(attached.error().code(), Errc::no_memory);
  EXPECT_LE(space.mapping_count(), AddressSpace::kMaxMappings);
}

INSTANTIATE_TEST_SUITE_P(One, MappingEdges, testing::Values(0U));

/// A thread that waits where something is unmapped or moved away must come back to life: nobody else will ever answer
/// it.
TEST_P(MappingEdges, WhoWaitsWhereAnEventTakesTheMappingAwayIsWoken) {
  const auto tickets = std::make_shared<test::Tickets>();
  for (const bool moves : {false, true}) {
    auto object = core_->create_object(test::ticket_source(tickets, kPageSize * kObjectPages), "shmem");
    ASSERT_TRUE(object);
    ASSERT_TRUE(fake_->space->attach(kArena, kPageSize * 4, *object, {}));
    fake_->userfault->clear();
    fake_->space->handle_fault(arena_page(1));
    ASSERT_EQ(fake_->userfault->wakes(arena_page(1)), 0U);
    event(moves ? test::remap_event(kArena, arena_page(50), kPageSize * 4) : test::unmap_event(kArena, kPageSize * 4));
    tickets->answer_all();
    EXPECT_GT(fake_->userfault->wakes(arena_page(1)), 0U) << (moves ? "moved" : "unmapped");
    fake_->space->detach(arena_page(50), kPageSize * 4);
  }
}

TEST_P(MappingEdges, WhoWaitsWhereAnotherMappingTakesThePlaceIsWoken) {
  const auto tickets = std::make_shared<test::Tickets>();
  auto object = core_->create_object(test::ticket_source(tickets, kPageSize * kObjectPages), "shmem");
  ASSERT_TRUE(object);
  ASSERT_TRUE(fake_->space->attach(kArena, kPageSize * 4, *object, {}));
  fake_->space->handle_fault(arena_page(3));
  ASSERT_TRUE(fake_->space->attach(arena_page(2), kPageSize * 4, objects_[0], {}));
  EXPECT_GT(fake_->userfault->wakes(arena_page(3)), 0U);
  tickets->answer_all();
}

/// Memory is registered before we are told of it, and a fault may be older than the mapping that took its place.
TEST(UnknownFaults, WaitForAMappingAndArePoisonedWhenNoneComes) {
  auto core = Core::create({.deadline = std::chrono::milliseconds(100)});
  ASSERT_TRUE(core && register_builtin_types((*core)->types()));
  const FakeSpace fake(*core);
  testing::internal::CaptureStderr();
  fake.space->handle_fault(arena_page(3));
  EXPECT_EQ(fake.userfault->page(arena_page(3)), Page::none);
  ASSERT_TRUE(fake.userfault->wait_until([&] { return fake.userfault->wakes(arena_page(3)) != 0; }))
      << "it comes again";
  // As the kernel: whoever is woken faults again.
  ASSERT_TRUE(fake.userfault->wait_until([&] {
    fake.space->handle_fault(arena_page(3));
    return fake.userfault->page(arena_page(3)) == Page::poisoned;
  }));
  testing::internal::GetCapturedStderr();
}

}  // namespace
}  // namespace uffda
