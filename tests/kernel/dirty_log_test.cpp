// DirtyLog: exact when nobody writes meanwhile, and complete when many do.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <random>
#include <set>
#include <thread>

#include "support/huge_pages.h"
#include "support/mm_kernel.h"
#include "support/mm_tickets.h"
#include "support/plain_words.h"
#include "support/scratch_file.h"
#include "uffda/dirty_log.h"

namespace uffda {
namespace {

using test::HugePages;
using test::load_plain;
using test::Pattern;
using test::store_plain;

volatile std::uint64_t* word(std::span<std::byte> bytes, std::uint64_t at) {
  return reinterpret_cast<std::uint64_t*>(&bytes[at]);
}

struct Kind {
  const char* name;
  const char* type;
  Access access;
  HandlerPolicy handlers = HandlerPolicy::per_cpu;
};

class DirtyLogs : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
    const bool huge = std::string_view(GetParam().type) == "hugetlb";
    size_ = huge ? 24_MiB : 4_MiB;
    if (huge) pages_ = HugePages(2_MiB, 32);
    if (!pages_.refused().empty()) GTEST_SKIP() << pages_.refused();
    const bool written_back = GetParam().access == Access::written_back;
    EngineOptions options{.handlers = GetParam().handlers};
    if (!written_back) options.monitors = UffdFeature::wp_async;
    auto engine = Engine::create(options);
    if (!engine && engine.error().code() == Errc::unsupported) GTEST_SKIP() << engine.error().message();
    ASSERT_TRUE(engine) << engine.error().message();
    engine_ = *engine;
    if (written_back) file_.emplace(size_.value);
    auto source = written_back ? open_source(file_->uri(), OpenFor::writing) : test::pattern_source(size_);
    ASSERT_TRUE(source) << source.error().message();
    auto memory = engine_->map(std::move(*source), {.access = GetParam().access, .type = GetParam().type});
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
  std::optional<test::ScratchFile> file_;
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
        store_plain(word(bytes, at), random());
      }
    });
  }
  const auto follow = [&] {
    const auto ranges = log_->collect();
    ASSERT_TRUE(ranges) << ranges.error().message();
    for (const ByteRange& range : *ranges) {
      for (std::uint64_t at = range.start.value; at < range.end().value; at += sizeof(std::uint64_t))
        store_plain(word(copy, at), load_plain(word(bytes, at)));
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

INSTANTIATE_TEST_SUITE_P(
    Types, DirtyLogs,
    testing::Values(Kind{"shmem", "shmem", Access::shared}, Kind{"shmem_private", "shmem", Access::private_},
                    Kind{"anon", "anon", Access::private_}, Kind{"hugetlb", "hugetlb", Access::shared},
                    Kind{"hugetlb_private", "hugetlb", Access::private_},
                    Kind{"written_back", "shmem", Access::written_back},
                    Kind{"written_back_in_thread", "shmem", Access::written_back, HandlerPolicy::in_thread},
                    Kind{"written_back_hugetlb", "hugetlb", Access::written_back}),
    [](const auto& info) { return std::string(info.param.name); });

/// A log of memory of which an eighth has room, and which is stored and dropped all the time.
class DirtyLogWrittenBack : public testing::TestWithParam<HandlerPolicy> {
 protected:
  static constexpr std::uint64_t kPages = 512;
  void SetUp() override {
    if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
    auto engine = Engine::create({.handlers = GetParam(), .budget = kPageSize * (kPages / 8)});
    ASSERT_TRUE(engine) << engine.error().message();
    engine_ = *engine;
    auto memory = engine_->map(file_.uri("evict+"), {.access = Access::written_back});
    ASSERT_TRUE(memory) << memory.error().message();
    memory_ = std::move(*memory);
  }
  std::set<std::uint64_t> collect(DirtyLog& log) {
    std::set<std::uint64_t> found;
    const auto ranges = log.collect();
    EXPECT_TRUE(ranges) << ranges.error().message();
    for (const ByteRange& range : ranges ? *ranges : std::vector<ByteRange>{}) {
      for (ByteOffset at = range.start; at < range.end(); at = at + kPageSize) found.insert(at.value / kPageSize.value);
    }
    return found;
  }
  void sync() {
    const auto synced = memory_->sync(Deadline::after(std::chrono::seconds(60)));
    EXPECT_TRUE(synced) << synced.error().message();
  }
  /// The first word of a page.
  volatile std::uint64_t* word_of(Memory& memory, std::uint64_t page) {
    return word(memory.writable_bytes(), page * kPageSize.value);
  }

  test::ScratchFile file_{kPages * kPageSize.value};
  std::optional<Engine> engine_;
  std::optional<Memory> memory_;
};

TEST_P(DirtyLogWrittenBack, WhatWasDirtyBeforeItsStartIsNamedWhenItIsWrittenAgain) {
  store_plain(word_of(*memory_, 3), 1);
  store_plain(word_of(*memory_, 4), 1);
  auto log = DirtyLog::start(*engine_, *memory_);
  ASSERT_TRUE(log) << log.error().message();
  EXPECT_EQ(collect(*log), std::set<std::uint64_t>{});
  store_plain(word_of(*memory_, 3), 2);
  EXPECT_EQ(collect(*log), std::set<std::uint64_t>{3});
  sync();
  EXPECT_EQ(collect(*log), std::set<std::uint64_t>{}) << "storing writes nothing";
  store_plain(word_of(*memory_, 4), 2);
  sync();
  EXPECT_EQ(collect(*log), std::set<std::uint64_t>{4}) << "it is clean, and was written";
}

TEST_P(DirtyLogWrittenBack, ItIsOfTheObjectAndThereIsOneAtATime) {
  auto second = memory_->map_again(Access::written_back);
  ASSERT_TRUE(second) << second.error().message();
  {
    auto log = DirtyLog::start(*engine_, *memory_);
    ASSERT_TRUE(log) << log.error().message();
    const auto another = DirtyLog::start(*engine_, *second);
    ASSERT_FALSE(another);
    EXPECT_EQ(another.error().code(), Errc::busy);
    for (std::uint64_t round = 1; round < 5; ++round) {
      store_plain(word_of(*memory_, 1), round);
      store_plain(word_of(*second, 2), round);
      EXPECT_EQ(load_plain(word_of(*second, 1)), round);
      EXPECT_EQ(collect(*log), (std::set<std::uint64_t>{1, 2}));
    }
    store_plain(word_of(*memory_, 5), 1);
  }
  auto log = DirtyLog::start(*engine_, *second);
  ASSERT_TRUE(log) << log.error().message();
  EXPECT_EQ(collect(*log), std::set<std::uint64_t>{}) << "a new log";
  store_plain(word_of(*memory_, 5), 2);
  EXPECT_EQ(collect(*log), std::set<std::uint64_t>{5});
}

/// Two mappings, writers, somebody who syncs, pages that are dropped, and a copy that follows the log.
TEST_P(DirtyLogWrittenBack, NoWriteIsInNoAnswer) {
  constexpr unsigned kWriters = 4;
  constexpr unsigned kSteps = 10'000;
  auto second = memory_->map_again(Access::written_back);
  ASSERT_TRUE(second) << second.error().message();
  auto log = DirtyLog::start(*engine_, *memory_);
  ASSERT_TRUE(log) << log.error().message();
  const std::span<std::byte> bytes = memory_->writable_bytes();
  std::vector<std::byte> copy(bytes.size());
  Pattern::fill(copy, 0);
  std::array<std::set<std::uint64_t>, kWriters> written;
  std::set<std::uint64_t> named;
  std::atomic<bool> done{false};
  std::vector<std::thread> writers;
  for (unsigned me = 0; me < kWriters; ++me) {
    writers.emplace_back([&, me] {
      std::mt19937_64 random(me);
      const std::span<std::byte> shown = me % 2 == 0 ? bytes : second->writable_bytes();
      for (unsigned step = 0; step < kSteps; ++step) {
        // Most of the time the same few pages, which are Dirty, are written again and again.
        const std::uint64_t page = random() % 8 == 0 ? random() % kPages : random() % 8;
        written.at(me).insert(page);
        store_plain(word(shown, page * kPageSize.value + random() % 64 * 64 + me * 8), random());
      }
    });
  }
  const auto follow = [&] {
    for (const std::uint64_t page : collect(*log)) {
      named.insert(page);
      for (std::uint64_t at = page * kPageSize.value; at < (page + 1) * kPageSize.value; at += sizeof(std::uint64_t))
        store_plain(word(copy, at), load_plain(word(bytes, at)));
    }
  };
  std::thread follower([&] {
    while (!done) follow();
  });
  std::thread syncer([&] {
    while (!done) sync();
  });
  for (std::thread& writer : writers) writer.join();
  done = true;
  follower.join();
  syncer.join();
  follow();
  EXPECT_TRUE(std::ranges::equal(copy, bytes));
  std::set<std::uint64_t> all;
  for (const auto& some : written) all.insert(some.begin(), some.end());
  EXPECT_EQ(named, all);
  EXPECT_TRUE(collect(*log).empty());
}

INSTANTIATE_TEST_SUITE_P(Ways, DirtyLogWrittenBack, testing::Values(HandlerPolicy::per_cpu, HandlerPolicy::in_thread),
                         [](const auto& way) {
                           return way.param == HandlerPolicy::in_thread ? std::string("in_thread") : "per_cpu";
                         });

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
