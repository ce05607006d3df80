// Access::shared: what is written is seen by every mapping of the object, and is never evicted, for no source has it.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "support/test_support.h"
#include "uffda/uffda.h"

namespace uffda {
namespace {

using test::Pattern;

class SharedMemory : public testing::Test {
 protected:
  void SetUp() override {
    auto engine = Engine::create({.budget = 4_MiB});
    if (!engine && engine.error().code() == Errc::permission_denied) GTEST_SKIP() << engine.error().message();
    ASSERT_TRUE(engine) << engine.error().message();
    engine_.emplace(std::move(*engine));
  }
  std::optional<Engine> engine_;
};

TEST_F(SharedMemory, WhatIsWrittenIsSeenByEveryMappingAndNotEvicted) {
  auto memory = engine_->map(test::pattern_source(2_MiB), {.access = Access::shared});
  auto pressure = engine_->map(test::pattern_source(32_MiB));
  ASSERT_TRUE(memory && pressure);
  auto reader = memory->map_again(Access::read_only);
  ASSERT_TRUE(reader);
  const std::span<std::byte> bytes = memory->writable_bytes();
  ASSERT_EQ(bytes.size(), 2U << 20U);
  for (std::size_t at = 0; at < bytes.size(); at += 3 * kPageSize.value) std::memset(&bytes[at], 0x77, kPageSize.value);
  EXPECT_EQ(Pattern::mismatch(pressure->bytes(), 0), std::nullopt);
  EXPECT_GT(engine_->report().folios_evicted, 0U);
  for (std::size_t at = 0; at < bytes.size(); at += kPageSize.value) {
    const bool written = at / kPageSize.value % 3 == 0;
    ASSERT_EQ(reader->bytes()[at + 9], written ? std::byte{0x77} : Pattern::at(at + 9)) << at;
    ASSERT_EQ(bytes[at + 9], reader->bytes()[at + 9]) << at;
  }
}

TEST_F(SharedMemory, AReaderOfTheWholeDoesNotMakeItDirty) {
  auto memory = engine_->map(test::pattern_source(32_MiB), {.access = Access::read_only});
  ASSERT_TRUE(memory);
  EXPECT_EQ(Pattern::mismatch(memory->bytes(), 0), std::nullopt);
  EXPECT_LE(engine_->report().resident.value, (8_MiB).value) << "clean pages go";
}

TEST_F(SharedMemory, WritersOfTheSamePageMeetInIt) {
  auto memory = engine_->map(test::pattern_source(1_MiB), {.access = Access::shared});
  ASSERT_TRUE(memory);
  auto again = memory->map_again(Access::shared);
  ASSERT_TRUE(again);
  std::vector<std::thread> writers;
  for (std::size_t t = 0; t < 4; ++t) {
    writers.emplace_back([&, t] {
      const std::span<std::byte> bytes = t % 2 == 0 ? memory->writable_bytes() : again->writable_bytes();
      for (std::size_t page = 0; page < 256; ++page) bytes[page * kPageSize.value + t] = static_cast<std::byte>(t + 1);
    });
  }
  for (std::thread& writer : writers) writer.join();
  for (std::size_t page = 0; page < 256; ++page) {
    const std::size_t at = page * kPageSize.value;
    for (std::size_t t = 0; t < 4; ++t) ASSERT_EQ(memory->bytes()[at + t], static_cast<std::byte>(t + 1)) << page;
    ASSERT_EQ(memory->bytes()[at + 4], Pattern::at(at + 4)) << page;
  }
}

}  // namespace
}  // namespace uffda
