// Sixteen threads that write, read and sync memory of which an eighth has room, over a source that delays, fails writes
// and takes pages away all the time. UFFDA_TORTURE_STEPS: how many steps in all (scripts/full: a million).
#include <fcntl.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "os/fd.h"
#include "support/mm_kernel.h"
#include "support/scratch_file.h"
#include "support/torture.h"
#include "uffda/uffda.h"

namespace uffda {
namespace {

class Torture : public testing::TestWithParam<HandlerPolicy> {
 protected:
  void SetUp() override {
    if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  }
};

std::uint64_t torture_steps() {
  const char* const wanted = std::getenv("UFFDA_TORTURE_STEPS");
  return wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : 40'000;
}

TEST_P(Torture, WhatIsReadAndStoredIsWhatWasWritten) {
  const test::ScratchFile file(test::kTortureSize);
  const os::UniqueFd disk(::open(file.path().c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(disk);
  const auto model = std::make_unique<test::TortureWord[]>(test::kTortureWords);
  const std::span words(model.get(), test::kTortureWords);
  auto engine = Engine::create({.handlers = GetParam(), .budget = {test::kTortureSize / 8}});
  ASSERT_TRUE(engine) << engine.error().message();
  {
    auto memory =
        engine->map(file.uri("evict+delay+error+", "?what=writes&rate=0.002&delay=20us&jitter=200us&every=200us"),
                    {.access = Access::written_back});
    ASSERT_TRUE(memory) << memory.error().message();
    auto* const bytes = reinterpret_cast<std::uint64_t*>(memory->writable_bytes().data());
    const auto sync = [&](ByteRange range) {
      Result<void> synced = memory->sync(range, Deadline::after(std::chrono::minutes(2)));
      while (!synced && synced.error().code() == Errc::io)
        synced = memory->sync(range, Deadline::after(std::chrono::minutes(2)));
      EXPECT_TRUE(synced) << synced.error().message();
      return synced.has_value();
    };
    std::vector<std::thread> writers;
    for (std::uint64_t me = 0; me < test::kTortureWriters; ++me) {
      writers.emplace_back([&, me] {
        test::TortureWriter writer({.me = me,
                                    .steps = torture_steps() / test::kTortureWriters,
                                    .seed = 1,
                                    .words = bytes,
                                    .model = words,
                                    .file = disk.get(),
                                    .sync = sync});
        EXPECT_EQ(writer.run(), "");
      });
    }
    for (std::thread& writer : writers) writer.join();
    EXPECT_EQ(test::TortureWriter::check_all(bytes, words), "");
  }
  const std::vector<std::byte> stored = file.contents();
  EXPECT_EQ(test::TortureWriter::check_all(reinterpret_cast<const std::uint64_t*>(stored.data()), words), "");
  const EngineReport report = engine->report();
  EXPECT_GT(report.folios_evicted, 0U);
  EXPECT_GT(report.writeback_failures, 0U);
  RecordProperty("evicted", std::to_string(report.folios_evicted));
  RecordProperty("written_back", std::to_string(report.folios_written_back));
  RecordProperty("failures", std::to_string(report.writeback_failures));
}

INSTANTIATE_TEST_SUITE_P(Ways, Torture, testing::Values(HandlerPolicy::per_cpu, HandlerPolicy::in_thread),
                         [](const auto& way) {
                           return way.param == HandlerPolicy::in_thread ? std::string("in_thread") : "per_cpu";
                         });

}  // namespace
}  // namespace uffda
