// Huge pages on the real kernel: where they come from, and what the kernel's ways with them must not cost. That bytes
// are right in general is shown by the library's and the contract suite.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "memtypes/builtin.h"
#include "support/huge_pages.h"
#include "support/mm_kernel.h"
#include "support/mm_memory_types.h"
#include "support/mm_tickets.h"
#include "support/test_support.h"
#include "uffda/uffda.h"

namespace uffda {
namespace {

using test::huge_pages_available;
using test::HugePages;
using test::LocalMemory;
using test::Pattern;
using test::pattern_source;
using test::touch;

constexpr ByteCount kHuge = 2_MiB;

class Hugetlb : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  }
  void take(std::uint64_t count) { pages_ = HugePages(kHuge, count); }
  Memory map(ByteCount size, const EngineOptions& options = {}) {
    if (!engine_) engine_.emplace(std::move(*Engine::create(options)));
    auto memory = engine_->map(pattern_source(size), {.type = "hugetlb"});
    EXPECT_TRUE(memory) << memory.error().message();
    return std::move(*memory);
  }
  HugePages pages_;
  std::optional<Engine> engine_;
};

#define TAKE_OR_SKIP(count) \
  take(count);              \
  if (!pages_.refused().empty()) GTEST_SKIP() << pages_.refused()

TEST_F(Hugetlb, PagesAreReservedWhenItIsMadeAndGivenBackWhenItGoes) {
  TAKE_OR_SKIP(8);
  const std::uint64_t before = huge_pages_available(kHuge);
  {
    const Memory memory = map(kHuge * 5 + 1_KiB);
    EXPECT_EQ(huge_pages_available(kHuge), before - 6);
    EXPECT_EQ(touch(&memory.bytes()[kHuge.value * 5]), Pattern::at(kHuge.value * 5));
    EXPECT_EQ(huge_pages_available(kHuge), before - 6) << "what was promised is used, not more";
  }
  // A reader or the housekeeping may hold the object for a moment longer.
  EXPECT_TRUE(test::eventually([&] { return huge_pages_available(kHuge) == before; }));
}

TEST_F(Hugetlb, WithTooFewPagesItSaysHowManyToAskFor) {
  TAKE_OR_SKIP(2);
  auto engine = Engine::create();
  ASSERT_TRUE(engine);
  const std::uint64_t available = huge_pages_available(kHuge);
  const auto memory = engine->map(pattern_source(kHuge * (available + 3)), {.type = "hugetlb"});
  ASSERT_FALSE(memory);
  EXPECT_EQ(memory.error().code(), Errc::no_memory);
  const std::string said = memory.error().message();
  EXPECT_NE(said.find(std::to_string(available + 3) + " huge pages of 2 MiB"), std::string::npos) << said;
  EXPECT_NE(said.find("/proc/sys/vm/nr_hugepages"), std::string::npos) << said;
}

TEST_F(Hugetlb, ASmallLimitHoldsAndAnEvictedPageComesBackFromItsReservation) {
  TAKE_OR_SKIP(16);
  const std::uint64_t before = huge_pages_available(kHuge);
  {
    const Memory memory = map(32_MiB, {.budget = 8_MiB});
    for (int pass = 0; pass < 3; ++pass) {
      for (std::uint64_t at = 0; at < (32_MiB).value; at += 64 * 1024 + 7)
        ASSERT_EQ(memory.bytes()[at], Pattern::at(at));
    }
    EXPECT_GT(engine_->report().folios_evicted, 16U);
    EXPECT_EQ(huge_pages_available(kHuge), before - 16) << "evicted pages stay reserved";
  }
  // A reader or the housekeeping may hold the object for a moment longer.
  EXPECT_TRUE(test::eventually([&] { return huge_pages_available(kHuge) == before; }));
}

TEST_F(Hugetlb, WhatAPrivateMappingWroteOutlivesTheLimit) {
  TAKE_OR_SKIP(24);
  const Memory shared = map(32_MiB, {.budget = 8_MiB});
  auto written = shared.map_again(Access::private_);
  ASSERT_TRUE(written) << written.error().message();
  const std::span<std::byte> bytes = written->writable_bytes();
  bytes[5000] = std::byte{0xEE};
  bytes[kHuge.value * 7 + 1] = std::byte{0xEE};
  for (std::uint64_t at = 0; at < (32_MiB).value; at += 512) {
    ASSERT_EQ(shared.bytes()[at], Pattern::at(at));
    ASSERT_EQ(bytes[at], Pattern::at(at));
  }
  EXPECT_EQ(bytes[5000], std::byte{0xEE});
  EXPECT_EQ(bytes[kHuge.value * 7 + 1], std::byte{0xEE});
  EXPECT_EQ(shared.bytes()[5000], Pattern::at(5000));
}

TEST_F(Hugetlb, ZeroPagesThatAStrangerLeftAreNotShown) {
  TAKE_OR_SKIP(4);
  const Memory memory = map(kHuge * 4);
  void* const stranger = ::mmap(nullptr, (kHuge * 4).value, PROT_READ | PROT_WRITE, MAP_SHARED, memory.descriptor(), 0);
  ASSERT_NE(stranger, MAP_FAILED);
  for (std::uint64_t i = 0; i < 4; ++i)
    static_cast<volatile std::byte*>(stranger)[i * kHuge.value] = std::byte{0};  // an unregistered mapping fills it
  EXPECT_EQ(Pattern::mismatch(memory.bytes(), 0), std::nullopt);
  ::munmap(stranger, (kHuge * 4).value);
}

class HugetlbRoutes : public testing::TestWithParam<bool> {};

TEST_P(HugetlbRoutes, SigbusAtExactlyTheFailedFoliosAndThreadsSeeTheRest) {
  if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  constexpr std::uint64_t kFolios = 12;
  const HugePages pages(kHuge, kFolios);
  if (!pages.refused().empty()) GTEST_SKIP() << pages.refused();
  const auto bad = [](std::uint64_t i) { return i == 0 || i == 5 || i == kFolios - 1; };
  testing::internal::CaptureStderr();
  auto core = Core::create({});
  ASSERT_TRUE(core);
  auto type = GetParam() ? make_hugetlb_type() : test::without_hook(make_hugetlb_type());
  const std::string name(type->name());
  ASSERT_TRUE((*core)->types().register_type(std::move(type)));
  auto object = (*core)->create_object(test::answering_source(kHuge * kFolios,
                                                              [&](FetchTicket ticket) {
                                                                if (bad(ticket.range().start.value / kHuge.value))
                                                                  return std::move(ticket).fail(Error(Errc::io, "bad"));
                                                                test::answer(std::move(ticket));
                                                              }),
                                       name);
  ASSERT_TRUE(object) << object.error().message();
  const auto memory = LocalMemory::create(*core, *object);
  ASSERT_NE(memory, nullptr);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t / 2);
      for (int i = 0; i < 2'000; ++i) {
        const std::uint64_t at = random() % (kHuge * kFolios).value;
        const auto byte = touch(memory->data() + at);
        if (byte.has_value() == bad(at / kHuge.value) || (byte && *byte != Pattern::at(at))) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  testing::internal::GetCapturedStderr();
}

INSTANTIATE_TEST_SUITE_P(Routes, HugetlbRoutes, testing::Bool(),
                         [](const auto& hook) { return std::string(hook.param ? "hook" : "attributes"); });

TEST(Hugetlb1G, OneFolioIsReadInPlace) {
  if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  const HugePages pages(1_GiB, 1);
  if (!pages.refused().empty()) GTEST_SKIP() << pages.refused();
  auto engine = Engine::create({.budget = 2_GiB});
  ASSERT_TRUE(engine);
  // The pattern fills slowly: words that tell their place do as well.
  const ByteCount size = 1_GiB - 3_KiB;
  const auto place = [](FetchTicket ticket) {
    const std::span<std::byte> buffer = ticket.buffer();
    for (std::uint64_t at = 0; at + 8 <= buffer.size(); at += 4096) std::memcpy(&buffer[at], &at, sizeof at);
    std::move(ticket).complete({buffer.size()});
  };
  const auto memory = engine->map(test::answering_source(size, place), {.type = "hugetlb-1g"});
  ASSERT_TRUE(memory) << memory.error().message();
  for (std::uint64_t at = 0; at + 8 <= size.value; at += 4096) {
    std::uint64_t word = 0;
    std::memcpy(&word, &memory->bytes()[at], sizeof word);
    ASSERT_EQ(word, at);
  }
  EXPECT_EQ(engine->report().fetches, 1U);
}

// --- memory that is mapped privately: each type ---------------------------------------------------------------------

class PrivateMappings : public testing::TestWithParam<const char*> {};

TEST_P(PrivateMappings, WrittenPagesOutliveTheSharedOnesAndTheRestStaysRight) {
  if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  HugePages pages;
  if (std::string_view(GetParam()) == "hugetlb") pages = HugePages(kHuge, 24);
  if (!pages.refused().empty()) GTEST_SKIP() << pages.refused();
  auto engine = Engine::create({.budget = 8_MiB});
  ASSERT_TRUE(engine);
  auto memory = engine->map(pattern_source(32_MiB), {.access = Access::private_, .type = GetParam()});
  ASSERT_TRUE(memory) << memory.error().message();
  const std::span<std::byte> bytes = memory->writable_bytes();
  const std::vector<std::uint64_t> places{17, 4096 * 3, (9_MiB).value + 5, (32_MiB).value - 1};
  for (const std::uint64_t at : places) bytes[at] = ~Pattern::at(at);
  for (int pass = 0; pass < 2; ++pass) {
    for (std::uint64_t at = 0; at < bytes.size(); at += 1021) {
      const bool is_written = std::ranges::find(places, at) != places.end();
      ASSERT_EQ(bytes[at], is_written ? ~Pattern::at(at) : Pattern::at(at)) << at;
    }
  }
  for (const std::uint64_t at : places) EXPECT_EQ(bytes[at], ~Pattern::at(at)) << at;
  const auto shared = memory->map_again(Access::read_only);
  ASSERT_TRUE(shared);
  for (const std::uint64_t at : places) EXPECT_EQ(shared->bytes()[at], Pattern::at(at)) << at;
}

INSTANTIATE_TEST_SUITE_P(Types, PrivateMappings, testing::Values("shmem", "hugetlb"),
                         [](const auto& type) { return std::string(type.param); });

}  // namespace
}  // namespace uffda
