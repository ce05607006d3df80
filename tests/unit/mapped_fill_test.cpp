// The fill of address spaces that have memory of their own: everything that is data comes to each of them, also where
// the kernel says "later", and what cannot be had is SIGBUS.
#include "monitors/mapped_fill.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>

#include "support/mm_core_fixture.h"

namespace uffda {
namespace {

using namespace test;
using Kind = FakeUserfault::Kind;

class MappedFill : public CoreTest {
 protected:
  static constexpr std::uint64_t kPages = 1000;  // several requests

  void SetUp() override {
    make_object_of(answering_source(kPageSize * kPages,
                                    [this](FetchTicket ticket) {
                                      const ByteRange range = ticket.range();
                                      const ByteOffset bad = ByteOffset{} + kPageSize * bad_page_;
                                      if (bad_page_ != 0 && range.start <= bad && bad < range.end())
                                        return std::move(ticket).fail(Error(Errc::io, "a bad page"));
                                      Pattern::fill(ticket.buffer().first(range.length.value), range.start.value);
                                      std::move(ticket).complete(range.length);
                                    }),
                   kPageSize * kPages, "anon");
  }
  FillProgress fill(ListSpaces spaces) {
    const auto progress = fill_address_spaces(object_, std::move(spaces)).wait(Deadline::after(kPatience));
    EXPECT_TRUE(progress) << "the fill does not end";
    return progress.value_or(FillProgress{});
  }
  ListSpaces only_one() {
    return [this] { return std::vector{fake_->space}; };
  }
  static void expect_all(const FakeUserfault& userfault, std::uint64_t but = kPages) {
    for (std::uint64_t i = 0; i < kPages; ++i) {
      if (i == but) continue;
      const auto bytes = userfault.copied(page(i));
      ASSERT_EQ(bytes.size(), kPageSize.value) << i;
      EXPECT_EQ(Pattern::mismatch(bytes, i * kPageSize.value), std::nullopt) << i;
    }
  }

  std::uint64_t bad_page_ = 0;  // 0: none
};

TEST_F(MappedFill, BringsEverything) {
  const FillProgress progress = fill(only_one());
  EXPECT_EQ(progress.end, FillEnd::complete);
  EXPECT_EQ(progress.left.value, 0U);
  EXPECT_EQ(progress.done, kPageSize * kPages);
  expect_all(fake());
}

TEST_F(MappedFill, LeavesWhatIsThere) {
  for (const std::uint64_t index : {0U, 1U, 300U, 999U}) fault(index);
  EXPECT_EQ(fill(only_one()).end, FillEnd::complete);
  expect_all(fake());
}

TEST_F(MappedFill, ComesAgainWhereTheAddressSpaceIsChanging) {
  std::atomic<int> refused{0};
  fake().script([&](const FakeUserfault::Call& call) -> std::optional<os::Progress> {
    if (call.kind == Kind::copy && refused.fetch_add(1) < 5) return os::Progress{.done = {}, .error = EAGAIN};
    return std::nullopt;
  });
  EXPECT_EQ(fill(only_one()).end, FillEnd::complete);
  EXPECT_GE(refused.load(), 5);
  expect_all(fake());
}

TEST_F(MappedFill, WhatTheProcessHasSplitAndUnmappedIsNoObstacle) {
  // Mappings of seven pages, and one page that is mapped no more.
  constexpr std::uint64_t kGone = 123;
  fake().script([&](const FakeUserfault::Call& call) -> std::optional<os::Progress> {
    if (call.kind != Kind::copy) return std::nullopt;
    const std::uint64_t first = (call.start - page(0)).value / kPageSize.value;
    const std::uint64_t end = first + call.length.value / kPageSize.value;
    const bool whole = first / 7 == (end - 1) / 7 && (end <= kGone || first > kGone);
    return whole ? std::nullopt : std::optional(os::Progress{.done = {}, .error = ENOENT});
  });
  EXPECT_EQ(fill(only_one()).end, FillEnd::complete);
  EXPECT_EQ(fake().page(page(kGone)), FakeUserfault::Page::none);
  expect_all(fake(), kGone);
}

TEST_F(MappedFill, WhatCannotBeHadIsPoisonedEverywhere) {
  bad_page_ = 321;
  const FillProgress progress = fill(only_one());
  EXPECT_EQ(progress.end, FillEnd::complete);
  EXPECT_EQ(progress.left, kPageSize);
  EXPECT_EQ(fake().page(page(bad_page_)), FakeUserfault::Page::poisoned);
  expect_all(fake(), bad_page_);
}

TEST_F(MappedFill, AChildHasItsTurn) {
  FakeSpace child(core_);
  ASSERT_TRUE(child.space->attach(kBase, kPageSize * kPages, object_, {}, Sharing::copied));
  unsigned asked = 0;
  const auto spaces = [&] {
    std::vector all{fake_->space};
    if (asked++ != 0) all.push_back(child.space);
    return all;
  };
  EXPECT_EQ(fill(spaces).end, FillEnd::complete);
  expect_all(fake());
  expect_all(*child.userfault);
  child.space->close();
}

TEST_F(MappedFill, FollowsWhatMoves) {
  const Address elsewhere = kBase + 64_GiB;
  fake().push(remap_event(page(100), elsewhere, kPageSize * 50));
  std::vector<uffd_msg> messages(4);
  ASSERT_TRUE(space().drain(messages));
  EXPECT_EQ(fill(only_one()).end, FillEnd::complete);
  EXPECT_EQ(Pattern::mismatch(fake().copied(elsewhere), 100 * kPageSize.value), std::nullopt);
  EXPECT_TRUE(fake().copied(page(100)).empty());
}

TEST_F(MappedFill, LeavesWhatIsNotShown) {
  space().detach(page(10), kPageSize * 980);
  EXPECT_EQ(fill(only_one()).wanted, kPageSize * 20);
  EXPECT_TRUE(fake().copied(page(500)).empty());
}

}  // namespace
}  // namespace uffda
