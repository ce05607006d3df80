// What sync() has returned for is there after a loss of power, whatever becomes of the rest; and nothing is there that
// nobody has written.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "support/mm_kernel.h"
#include "support/power_loss.h"
#include "support/scratch_file.h"
#include "support/test_support.h"
#include "uffda/uffda.h"

namespace uffda {
namespace {

constexpr std::uint64_t kDiskPages = 256;
constexpr std::uint64_t kDiskSize = kDiskPages * kPageSize.value;
constexpr std::uint64_t kDiskWords = kDiskSize / sizeof(std::uint64_t);
constexpr std::uint64_t kDiskWriters = 2;

/// One word of the disk: its versions are counted, and each has a value of its own.
struct WordModel {
  std::uint32_t written = 0;  // the newest version
  std::uint32_t synced = 0;   // the newest for which sync() has returned

  static std::uint64_t value(std::uint64_t index, std::uint32_t version) {
    if (version != 0) return index << 32U | version;
    std::uint64_t first = 0;
    test::Pattern::fill(std::as_writable_bytes(std::span(&first, 1)), index * sizeof first);
    return first;
  }
  /// What the disk may hold: nothing older than what was synced.
  [[nodiscard]] bool allows(std::uint64_t index, std::uint64_t found) const {
    if (synced == 0 && found == value(index, 0)) return true;
    const std::uint64_t version = found & 0xFFFFFFFFU;
    return found >> 32U == index && version >= std::max(synced, 1U) && version <= written;
  }
};

class PowerLoss : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
    auto engine = Engine::create({.budget = {kDiskSize / 8}});
    ASSERT_TRUE(engine) << engine.error().message();
    engine_.emplace(std::move(*engine));
  }

  /// Writes and syncs until the power is gone, and looks at what is left.
  void lose_power(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    const test::ScratchFile file(kDiskSize);
    auto power = std::make_shared<test::Power>(file.contents(), 1 + random() % 200, seed);
    std::vector<WordModel> model(kDiskWords);
    {
      auto source = open_source(file.uri(), OpenFor::writing);
      ASSERT_TRUE(source) << source.error().message();
      auto memory = engine_->map(test::powered(std::move(*source), power), {.access = Access::written_back});
      ASSERT_TRUE(memory) << memory.error().message();
      std::vector<std::thread> writers;
      for (std::uint64_t me = 0; me < kDiskWriters; ++me)
        writers.emplace_back([&, me] { write(*memory, *power, me, seed * kDiskWriters + me, model); });
      for (std::thread& writer : writers) writer.join();
      power->end_quietly();
    }
    sectors_lost_ += power->settle(file.path());
    const std::vector<std::byte> left = file.contents();
    for (std::uint64_t i = 0; i < kDiskWords; ++i) {
      std::uint64_t found = 0;
      std::memcpy(&found, left.data() + i * sizeof found, sizeof found);
      ASSERT_TRUE(model[i].allows(i, found)) << "seed " << seed << ", word " << i << " is " << std::hex << found
                                             << ", synced is version " << model[i].synced;
    }
  }

  /// Every other word is this writer's. What it wrote before a sync() that returns without an error is synced.
  void write(Memory& memory, const test::Power& power, std::uint64_t me, std::uint64_t seed,
             std::vector<WordModel>& model) {
    std::mt19937_64 random(seed);
    std::vector<std::uint64_t> unsynced;
    auto* const words = reinterpret_cast<volatile std::uint64_t*>(memory.writable_bytes().data());
    while (!power.lost()) {
      const std::uint64_t index = random() % (kDiskWords / kDiskWriters) * kDiskWriters + me;
      words[index] = WordModel::value(index, ++model[index].written);
      unsynced.push_back(index);
      const std::uint64_t what = random() % 40;
      if (what > 1) continue;
      ByteRange range{.start = {}, .length = {kDiskSize}};
      if (what == 1) range.start.value = random() % kDiskSize;
      range.length.value -= range.start.value;
      const auto synced = memory.sync(range, Deadline::after(std::chrono::seconds(60)));
      if (!synced) {
        EXPECT_TRUE(power.lost()) << synced.error().message();
        return;
      }
      std::erase_if(unsynced, [&](std::uint64_t i) {
        if (i * sizeof(std::uint64_t) + sizeof(std::uint64_t) <= range.start.value) return false;
        model[i].synced = model[i].written;
        return true;
      });
    }
  }

  std::optional<Engine> engine_;
  std::uint64_t sectors_lost_ = 0;
};

TEST_F(PowerLoss, WhatSyncReturnedForIsThereAndNothingThatWasNeverWritten) {
  const char* const wanted = std::getenv("UFFDA_POWER_LOSSES");
  const std::uint64_t seeds = wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : 100;
  for (std::uint64_t seed = 1; seed <= seeds && !HasFatalFailure(); ++seed) lose_power(seed);
  EXPECT_GT(sectors_lost_, 0U) << "what was not synced is lost at times, or this tests nothing";
}

}  // namespace
}  // namespace uffda
