// What each errno of a resolution means, against a userfaultfd that answers as scripted.
#include "mm/resolve.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <functional>
#include <vector>

#include "support/mm_fake_userfault.h"

namespace uffda {
namespace {

using test::FakeUserfault;
using Kind = FakeUserfault::Kind;
using Page = FakeUserfault::Page;

constexpr Address kStart{0x7000'0000'0000};
constexpr ByteCount kEight = kPageSize * 8;

Address page_at(std::uint64_t index) { return kStart + kPageSize * index; }

class Resolve : public testing::Test {
 protected:
  void answer_once(std::uint64_t at, os::Progress progress) {
    fake_.script([at, progress, used = false](const FakeUserfault::Call& call) mutable -> std::optional<os::Progress> {
      if (used || call.start != page_at(at)) return std::nullopt;
      used = true;
      return progress;
    });
  }
  std::size_t mapped() const {
    std::size_t count = 0;
    for (std::uint64_t i = 0; i < 8; ++i) count += fake_.page(page_at(i)) == Page::mapped ? 1U : 0U;
    return count;
  }
  FakeUserfault fake_;
};

TEST_F(Resolve, AWholeRangeIsOneCall) {
  const Resolved resolved = continue_range(fake_, kStart, kEight, kPageSize, Mapped::skip);
  EXPECT_EQ(resolved.resolution, Resolution::done);
  EXPECT_EQ(resolved.mapped, kEight);
  EXPECT_EQ(resolved.reached, kEight);
  EXPECT_EQ(fake_.calls().size(), 1U);
}

TEST_F(Resolve, PagesThatAreMappedAreSkippedAndWoken) {
  for (const std::uint64_t i : {0, 3, 4, 7}) fake_.continue_run(page_at(i), kPageSize, os::Wake::no, os::Protect::no);
  const std::size_t before = fake_.wakes(page_at(3));
  const Resolved resolved = continue_range(fake_, kStart, kEight, kPageSize, Mapped::skip);
  EXPECT_EQ(resolved.resolution, Resolution::done);
  EXPECT_EQ(resolved.mapped, kPageSize * 4);
  EXPECT_EQ(resolved.reached, kEight);
  EXPECT_EQ(mapped(), 8U);
  EXPECT_GT(fake_.wakes(page_at(3)), before) << "who faulted there may be asleep";
  for (std::uint64_t i = 0; i < 8; ++i) EXPECT_GT(fake_.wakes(page_at(i)), 0U) << i;
}

TEST_F(Resolve, NeighboursAreOnlyAnOffer) {
  fake_.continue_run(page_at(3), kPageSize, os::Wake::no, os::Protect::no);
  const Resolved resolved = continue_range(fake_, kStart, kEight, kPageSize, Mapped::stop);
  EXPECT_EQ(resolved.resolution, Resolution::done);
  EXPECT_EQ(resolved.mapped, kPageSize * 3);
  EXPECT_EQ(mapped(), 4U);
  EXPECT_GE(resolved.reached, kPageSize * 3);
}

TEST_F(Resolve, AFaultingPageThatSomebodyElseMappedCountsAsReached) {
  fake_.continue_run(page_at(0), kPageSize, os::Wake::no, os::Protect::no);
  const std::size_t before = fake_.wakes(kStart);
  const Resolved resolved = continue_range(fake_, kStart, kEight, kPageSize, Mapped::stop);
  EXPECT_EQ(resolved.mapped, ByteCount{0});
  EXPECT_EQ(resolved.reached, kPageSize);
  EXPECT_GT(fake_.wakes(kStart), before);
}

TEST_F(Resolve, ProgressThatStopsIsTakenUpWhereItStopped) {
  answer_once(0, {.done = kPageSize * 2, .error = EAGAIN});
  const Resolved resolved = continue_range(fake_, kStart, kEight, kPageSize, Mapped::skip);
  EXPECT_EQ(resolved.resolution, Resolution::done);
  EXPECT_EQ(resolved.mapped, kEight);
  ASSERT_EQ(fake_.calls().size(), 2U);
  EXPECT_EQ(fake_.calls()[1].start, page_at(2));
  EXPECT_EQ(fake_.calls()[1].length, kPageSize * 6);
}

struct Meaning {
  int error;
  Resolution resolution;
};

TEST_F(Resolve, EachErrnoMeansOneThing) {
  for (const Meaning& meaning : {Meaning{EAGAIN, Resolution::try_later}, Meaning{ENOMEM, Resolution::try_later},
                                 Meaning{EINTR, Resolution::try_later}, Meaning{ENOENT, Resolution::no_range},
                                 Meaning{ESRCH, Resolution::gone}, Meaning{EFAULT, Resolution::not_cached}}) {
    fake_.clear();
    fake_.script([&](const FakeUserfault::Call& /*call*/) -> std::optional<os::Progress> {
      return os::Progress{.done = {0}, .error = meaning.error};
    });
    const Resolved at_once = continue_range(fake_, kStart, kEight, kPageSize, Mapped::skip);
    EXPECT_EQ(at_once.resolution, meaning.resolution) << meaning.error;
    EXPECT_EQ(at_once.reached, ByteCount{0});
    // What may cross mappings is halved: 8, 4, 2, 1 pages. Else there is no retry here.
    EXPECT_EQ(fake_.calls().size(), meaning.error == ENOENT ? 4U : 1U) << meaning.error;

    fake_.clear();
    fake_.script([&](const FakeUserfault::Call& call) -> std::optional<os::Progress> {
      if (call.start == page_at(0)) return os::Progress{.done = kPageSize * 2, .error = EAGAIN};
      return os::Progress{.done = {0}, .error = meaning.error};
    });
    const Resolved later = continue_range(fake_, kStart, kEight, kPageSize, Mapped::skip);
    EXPECT_EQ(later.resolution, meaning.resolution) << meaning.error;
    EXPECT_EQ(later.reached, kPageSize * 2);
    EXPECT_EQ(later.mapped, kPageSize * 2);
  }
}

TEST_F(Resolve, CopyPutsEachPagesBytesInItsPlace) {
  std::vector<std::byte> bytes(kEight.value);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i / kPageSize.value + 1);
  fake_.continue_run(page_at(2), kPageSize, os::Wake::no, os::Protect::no);
  const Resolved resolved = copy_range(fake_, kStart, bytes, kPageSize);
  EXPECT_EQ(resolved.resolution, Resolution::done);
  EXPECT_EQ(resolved.mapped, kPageSize * 7);
  for (const std::uint64_t i : {0, 1, 3, 7}) {
    const auto copied = fake_.copied(page_at(i));
    ASSERT_EQ(copied.size(), kPageSize.value) << i;
    EXPECT_EQ(copied.front(), static_cast<std::byte>(i + 1)) << i;
    EXPECT_EQ(copied.back(), static_cast<std::byte>(i + 1)) << i;
  }
}

TEST_F(Resolve, ARangeThatCrossesMappingsIsDoneInParts) {
  std::vector<std::byte> bytes(kEight.value);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i / kPageSize.value + 1);
  fake_.script([&](const test::FakeUserfault::Call& call) -> std::optional<os::Progress> {
    const bool crosses = call.start < page_at(3) && call.start + call.length > page_at(3);
    if (call.kind != test::FakeUserfault::Kind::copy || !crosses) return std::nullopt;
    return os::Progress{.done = {}, .error = ENOENT};
  });
  const Resolved resolved = copy_range(fake_, kStart, bytes, kPageSize);
  EXPECT_EQ(resolved.resolution, Resolution::done);
  EXPECT_EQ(resolved.mapped, kEight);
  for (std::uint64_t i = 0; i < 8; ++i) {
    const auto copied = fake_.copied(page_at(i));
    ASSERT_EQ(copied.size(), kPageSize.value) << i;
    EXPECT_EQ(copied.front(), static_cast<std::byte>(i + 1)) << i;
  }
}

TEST_F(Resolve, WhereNothingIsMappedTheRangeEnds) {
  fake_.script([&](const test::FakeUserfault::Call& call) -> std::optional<os::Progress> {
    const bool over = call.start + call.length > page_at(5);
    return over ? std::optional(os::Progress{.done = {}, .error = ENOENT}) : std::nullopt;
  });
  const Resolved resolved = continue_range(fake_, kStart, kEight, kPageSize, Mapped::skip);
  EXPECT_EQ(resolved.resolution, Resolution::no_range);
  EXPECT_EQ(resolved.reached, kPageSize * 5);
}

TEST_F(Resolve, PoisonLeavesMappedPagesAlone) {
  fake_.continue_run(page_at(1), kPageSize, os::Wake::no, os::Protect::no);
  const Resolved resolved = poison_range(fake_, kStart, kPageSize * 4, kPageSize);
  EXPECT_EQ(resolved.resolution, Resolution::done);
  EXPECT_EQ(fake_.page(page_at(0)), Page::poisoned);
  EXPECT_EQ(fake_.page(page_at(1)), Page::mapped);
  EXPECT_EQ(fake_.page(page_at(3)), Page::poisoned);
  EXPECT_EQ(fake_.page(page_at(4)), Page::none);
  for (std::uint64_t i = 0; i < 4; ++i) EXPECT_GT(fake_.wakes(page_at(i)), 0U) << i;
}

}  // namespace
}  // namespace uffda
