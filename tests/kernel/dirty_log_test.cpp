// DirtyLog: exact when nobody writes meanwhile, and complete when many do.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <set>
#include <thread>

#include "support/huge_pages.h"
#include "support/mm_kernel.h"
#include "support/mm_tickets.h"
#include "uffda/dirty_log.h"

namespace uffda {
namespace {

using test::HugePages;
using test::Pattern;

std::atomic_ref<std::uint64_t> word(std::span<std::byte> bytes, std::uint64_t at) {
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(&bytes[at]));
}

struct Kind {
  const char* name;
  const char* type;
  Access access;
};

class DirtyLogs : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
    const bool huge = std::string_view(GetParam().type) == "hugetlb";
    size_ = huge ? 24_MiB : 4_MiB;
    if (huge) pages_ = HugePages(2_MiB, 32);
    if (!pages_.refused().empty()) GTEST_SKIP() << pages_.refused();
    auto engine = Engine::create({.monitors = UffdFeature::wp_async});
    if (!engine && engine.error().code() == Errc::unsupported) GTEST_SKIP() << engine.error().message();
    ASSERT_TRUE(engine) << engine.error().message();
    engine_ = *engine;
    auto memory = engine_->map(test::pattern_source(size_), {.access = GetParam().access, .type = GetParam().type});
    ASSERT_TRUE(memory) << memory.error().message();
    memory_ = std::move(*memory);
    auto log = DirtyLog::start(*engine_, *memory_);
    ASSERT_TRUE(log) << log.error().message();
    log_ = std::move(*log);
  }
  [[nodiscard]] std::uint64_t pages() const { return size_.value / memory_->page_size().value; }
  std::set<std::uint64_t> collect() { return pages_of(log_->collect()); }
  std::set<std::uint64_t> pages_of(const Result<std::vector<ByteRange>>& ranges) {
    std::set<std::uint64_t> found;
    EXPECT_TRUE(ranges) << (ranges ? "" : ranges.error().message());
    if (!ranges) return found;
    ByteOffset end;
    for (const ByteRange& range : *ranges) {
      EXPECT_TRUE(found.empty() || end < range.start) << "ascending, and none adjoins the next";
      end = range.end();
      for (ByteOffset at = range.start; at < end; at = at + memory_->page_size())
        found.insert(at.value / memory_->page_size().value);
    }
    return found;
  }

  ByteCount size_;
  HugePages pages_;
  std::optional<Engine> engine_;
  std::optional<Memory> memory_;
  std::optional<DirtyLog> log_;
};

TEST_P(DirtyLogs, NamesWhatWasWrittenAndNothingElse) {
  const std::span<std::byte> bytes = memory_->writable_bytes();
  EXPECT_TRUE(collect().empty()) << "nothing was touched";
  for (std::uint64_t at = 0; at < bytes.size(); at += 4096) ASSERT_EQ(bytes[at + 9], Pattern::at(at + 9));
  EXPECT_TRUE(collect().empty()) << "everything was read";
  std::mt19937_64 random(5);
  for (int round = 0; round < 20; ++round) {
    std::set<std::uint64_t> written;
    for (std::uint64_t i = random() % 40; i-- != 0;) {
      const std::uint64_t at = random() % bytes.size();
      bytes[at] = static_cast<std::byte>(round);
      written.insert(at / memory_->page_size().value);
    }
    EXPECT_EQ(pages_of(log_->peek()), written);
    EXPECT_EQ(collect(), written);
    EXPECT_TRUE(collect().empty());
  }
}

TEST_P(DirtyLogs, APageWhoseFirstTouchIsAWriteIsNamed) {
  memory_->writable_bytes()[size_.value - 1] = std::byte{1};
  EXPECT_EQ(collect(), std::set{pages() - 1});
}

// What live migration does: a copy that is brought up to date by what the log says, while everybody writes.
TEST_P(DirtyLogs, ACopyThatFollowsTheLogEndsUpEqual) {
  const std::span<std::byte> bytes = memory_->writable_bytes();
  std::vector<std::byte> copy(bytes.begin(), bytes.end());
  std::atomic<bool> done{false};
  std::vector<std::thread> writers;
  for (unsigned t = 0; t < 3; ++t) {
    writers.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < 60'000; ++i) {
        // Words of its own: no two threads write to one.
        const std::uint64_t at = (random() % (bytes.size() / 64) * 64) + t * 8;
        word(bytes, at).store(random(), std::memory_order_relaxed);
      }
    });
  }
  const auto follow = [&] {
    const auto ranges = log_->collect();
    ASSERT_TRUE(ranges) << ranges.error().message();
    for (const ByteRange& range : *ranges) {
      for (std::uint64_t at = range.start.value; at < range.end().value; at += sizeof(std::uint64_t))
        word(copy, at) = word(bytes, at).load(std::memory_order_relaxed);
    }
  };
  std::thread follower([&] {
    while (!done) follow();
  });
  for (std::thread& writer : writers) writer.join();
  done = true;
  follower.join();
  follow();
  EXPECT_EQ(std::memcmp(copy.data(), bytes.data(), copy.size()), 0);
  EXPECT_TRUE(collect().empty());
}

INSTANTIATE_TEST_SUITE_P(Types, DirtyLogs,
                         testing::Values(Kind{"shmem", "shmem", Access::shared},
                                         Kind{"shmem_private", "shmem", Access::private_},
                                         Kind{"anon", "anon", Access::private_},
                                         Kind{"hugetlb", "hugetlb", Access::shared},
                                         Kind{"hugetlb_private", "hugetlb", Access::private_}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(DirtyLog, NeedsAnEngineThatWasMadeForIt) {
  if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  auto engine = Engine::create({});
  ASSERT_TRUE(engine);
  auto memory = engine->map("zero:1M", {.access = Access::private_});
  ASSERT_TRUE(memory);
  const auto log = DirtyLog::start(*engine, *memory);
  ASSERT_FALSE(log);
  EXPECT_EQ(log.error().code(), Errc::unsupported);
  EXPECT_NE(log.error().message().find("wp_async"), std::string::npos) << log.error().message();
}

}  // namespace
}  // namespace uffda
