// Anonymous memory that begins with an object's bytes: they are copied out of the object's cache, and what is dropped
// of it is the kernel's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>

#include "support/mm_core_fixture.h"

namespace uffda {
namespace {

using namespace test;
using Kind = FakeUserfault::Kind;
using testing::HasSubstr;

class Copied : public CoreTest {
 protected:
  static constexpr std::uint64_t kPages = 64;

  void SetUp() override {
    make_object_of(answering_source(kPageSize * kPages,
                                    [](FetchTicket ticket) {
                                      Pattern::fill(ticket.buffer().first(ticket.range().length.value),
                                                    ticket.range().start.value);
                                      const ByteCount all = ticket.range().length;
                                      std::move(ticket).complete(all);
                                    }),
                   kPageSize * kPages);
    space().detach(kBase, kPageSize * kPages);
    ASSERT_TRUE(space().attach(kBase, kPageSize * kPages, object_, {}, Sharing::copied));
    fake().clear();
  }
  void read_events(std::initializer_list<uffd_msg> events) {
    for (const uffd_msg& event : events) fake().push(event);
    std::vector<uffd_msg> messages(16);
    ASSERT_EQ(*space().drain(messages), events.size());
  }
  void expect_copied(std::uint64_t index) {
    const auto bytes = fake().copied(page(index));
    ASSERT_EQ(bytes.size(), kPageSize.value) << index;
    EXPECT_EQ(Pattern::mismatch(bytes, index * kPageSize.value), std::nullopt) << index;
  }
  [[nodiscard]] std::size_t calls(Kind kind) {
    const auto all = fake().calls();
    return static_cast<std::size_t>(std::ranges::count(all, kind, &FakeUserfault::Call::kind));
  }
};

TEST_F(Copied, PagesAreCopiedAndNeverMapped) {
  for (std::uint64_t index = 0; index < kPages; ++index) fault(index);
  for (std::uint64_t index = 0; index < kPages; ++index) expect_copied(index);
  EXPECT_EQ(calls(Kind::continue_run), 0U);
}

TEST_F(Copied, AnotherSpaceGetsThemFromTheCache) {
  for (std::uint64_t index = 0; index < kPages; ++index) fault(index);
  const std::uint64_t fetches = core_->stats().fetches.load();
  FakeSpace other(core_);
  ASSERT_TRUE(other.space->attach(kBase, kPageSize * kPages, object_, {}, Sharing::copied));
  for (std::uint64_t index = 0; index < kPages; ++index) other.space->handle_fault(page(index));
  for (std::uint64_t index = 0; index < kPages; ++index)
    EXPECT_EQ(Pattern::mismatch(other.userfault->copied(page(index)), index * kPageSize.value), std::nullopt);
  EXPECT_EQ(core_->stats().fetches.load(), fetches);
  other.space->close();
}

TEST_F(Copied, WhatIsDroppedIsLeftToTheKernel) {
  read_events({remove_event(page(8), kPageSize * 4)});
  EXPECT_TRUE(space().maps(page(7)));
  EXPECT_FALSE(space().maps(page(8)));
  EXPECT_FALSE(space().maps(page(11)));
  EXPECT_TRUE(space().maps(page(12)));
  ASSERT_EQ(calls(Kind::unregister), 1U);
  const auto all = fake().calls();
  const auto call = std::ranges::find(all, Kind::unregister, &FakeUserfault::Call::kind);
  EXPECT_EQ(call->start, page(8));
  EXPECT_EQ(call->length, kPageSize * 4);
  fault(12);
  expect_copied(12);
}

TEST_F(Copied, AFaultThatWasReadBeforeTheDropGetsNoBytes) {
  read_events({fault_event(page(9)), remove_event(page(9), kPageSize)});
  EXPECT_EQ(fake().page(page(9)), FakeUserfault::Page::none);
  EXPECT_TRUE(fake().wait_until([this] { return fake().wakes(page(9)) != 0; })) << "its thread looks for itself";
}

TEST_F(Copied, AFetchThatWasUnderWayBringsNothingBack) {
  const auto tickets = std::make_shared<Tickets>();
  auto object = core_->create_object(ticket_source(tickets, kPageSize * kPages), "shmem");
  ASSERT_TRUE(object);
  ASSERT_TRUE(space().attach(page(100), kPageSize * kPages, *object, {}, Sharing::copied));
  fault(105);
  ASSERT_TRUE(tickets->wait_for(1));
  read_events({remove_event(page(105), kPageSize)});
  tickets->answer_all();
  EXPECT_EQ(fake().page(page(105)), FakeUserfault::Page::none);
  space().detach(page(100), kPageSize * kPages);
}

TEST_F(Copied, ADropOfManyMappingsAtOnce) {
  ASSERT_TRUE(space().attach(page(10), kPageSize * 10, object_, {}, Sharing::shared));
  read_events({remove_event(page(5), kPageSize * 20)});
  EXPECT_FALSE(space().maps(page(9)));
  EXPECT_TRUE(space().maps(page(10))) << "pages of the cache show its bytes again";
  EXPECT_TRUE(space().maps(page(19)));
  EXPECT_FALSE(space().maps(page(20)));
  EXPECT_TRUE(space().maps(page(25)));
  EXPECT_EQ(calls(Kind::unregister), 2U);
}

TEST_F(Copied, ADropWithinOtherMemoryChangesNothing) {
  ASSERT_TRUE(space().attach(page(10), kPageSize * 10, object_, {}, Sharing::shared));
  read_events({remove_event(page(12), kPageSize * 2)});
  read_events({remove_event(page(18), kPageSize * 4)});
  EXPECT_TRUE(space().maps(page(12)));
  EXPECT_TRUE(space().maps(page(19)));
  EXPECT_FALSE(space().maps(page(20)));
  EXPECT_TRUE(space().maps(page(22)));
}

TEST_F(Copied, WhatTheKernelWillNotTakeIsNeverShownAgain) {
  fake().script([](const FakeUserfault::Call& call) -> std::optional<os::Progress> {
    if (call.kind == Kind::unregister) return os::Progress{.done = {}, .error = ENOMEM};
    return std::nullopt;
  });
  testing::internal::CaptureStderr();
  read_events({remove_event(page(8), kPageSize * 4)});
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("raise vm.max_map_count"));
  EXPECT_FALSE(space().maps(page(9)));
  fault(9);
  EXPECT_TRUE(fake().copied(page(9)).empty());
}

TEST_F(Copied, AnEventThatIsUnreadMakesTheFaultComeAgain) {
  bool unread = true;
  fake().script([&](const FakeUserfault::Call& call) -> std::optional<os::Progress> {
    if (call.kind == Kind::copy && unread) return os::Progress{.done = {}, .error = EAGAIN};
    return std::nullopt;
  });
  fault(3);
  EXPECT_EQ(fake().page(page(3)), FakeUserfault::Page::none);
  EXPECT_TRUE(fake().wait_until([this] { return fake().wakes(page(3)) != 0; }));
  unread = false;
  fault(3);
  expect_copied(3);
}

TEST_F(Copied, APartThatWasCopiedIsNoFailure) {
  fake().script([](const FakeUserfault::Call& call) -> std::optional<os::Progress> {
    if (call.kind != Kind::copy || call.length == kPageSize) return std::nullopt;
    return os::Progress{.done = {}, .error = ENOENT};  // the run crosses mappings of theirs
  });
  for (std::uint64_t index = 0; index < kPages; ++index) fault(index);
  for (std::uint64_t index = 0; index < kPages; ++index)
    EXPECT_TRUE(fake().page(page(index)) == FakeUserfault::Page::mapped || fake().wakes(page(index)) != 0) << index;
}

TEST_F(Copied, HolesWithoutEndCostNoMoreThanTheirOwnSpace) {
  testing::internal::CaptureStderr();
  const std::uint64_t holes = AddressSpace::kMaxMappings + 100;
  auto object = core_->create_object(answering_source(kPageSize * (2 * holes + 2), [](FetchTicket) {}), "shmem");
  ASSERT_TRUE(object);
  ASSERT_TRUE(space().attach(page(1000), kPageSize * (2 * holes + 1), *object, {}, Sharing::copied));
  for (std::uint64_t i = 0; i < holes; ++i) read_events({remove_event(page(1001 + 2 * i), kPageSize)});
  EXPECT_LE(space().mapping_count(), AddressSpace::kMaxMappings);
  EXPECT_TRUE(space().maps(page(1000)));
  EXPECT_FALSE(space().maps(page(1000 + 2 * holes))) << "behind the last one that there was room for";
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("mappings"));
}

}  // namespace
}  // namespace uffda
