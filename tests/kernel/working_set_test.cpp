// Record, then replay, on the real userfaultfd: the second run finds what the first one touched; and a fault never
// waits behind what is prefetched.
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <thread>

#include "monitors/working_set.h"
#include "sources/pack/writer.h"
#include "support/handoff_support.h"
#include "support/mm_fake_userfault.h"
#include "support/mm_kernel.h"
#include "support/mm_tickets.h"
#include "uffda/uffda.h"

namespace uffda {
namespace {

using test::Pattern;

constexpr ByteCount kSourceSize = 64_MiB;

class WorkingSets : public testing::TestWithParam<HandlerPolicy> {
 protected:
  void SetUp() override {
    if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  }
  /// A new pager with nothing in its cache.
  void start(std::unique_ptr<PageSource> source) {
    memory_.reset();
    engine_.reset();
    auto engine = Engine::create({.handlers = GetParam()});
    ASSERT_TRUE(engine) << engine.error().message();
    engine_ = *engine;
    auto memory = engine_->map(std::move(source));
    ASSERT_TRUE(memory) << memory.error().message();
    memory_ = std::move(*memory);
  }
  void touch_right(std::uint64_t page) {
    const std::uint64_t at = page * 4096 + page % 4096;
    EXPECT_EQ(memory_->bytes()[at], Pattern::at(at)) << "page " << page;
  }
  /// What the program of these tests does: single pages, and two runs.
  static std::vector<std::uint64_t> program() {
    std::mt19937_64 random(17);
    std::vector<std::uint64_t> pages(300);
    std::ranges::generate(pages, [&] { return random() % (kSourceSize.value / 4096); });
    for (std::uint64_t page = 5000; page < 6000; ++page) pages.push_back(page);
    for (std::uint64_t page = 100; page < 200; ++page) pages.push_back(page);
    return pages;
  }

  test::TempDir directory_;
  std::string file_ = directory_.path("ws");
  std::optional<Engine> engine_;
  std::optional<Memory> memory_;
};

TEST_P(WorkingSets, TheSecondRunWaitsForNothing) {
  start(test::pattern_source(kSourceSize));
  {
    auto recording = memory_->record(file_);
    ASSERT_TRUE(recording) << recording.error().message();
    for (const std::uint64_t page : program()) touch_right(page);
    ASSERT_TRUE(recording->save());
  }
  const std::uint64_t waited = engine_->report().faults_missing;
  EXPECT_GT(waited, 250U);

  start(test::pattern_source(kSourceSize));
  auto fill = memory_->prefetch(file_);
  ASSERT_TRUE(fill) << fill.error().message();
  const auto end = fill->wait(Deadline::after(test::kPatience));
  ASSERT_TRUE(end);
  EXPECT_EQ(end->end, FillEnd::complete);
  for (const std::uint64_t page : program()) touch_right(page);
  EXPECT_EQ(engine_->report().faults_missing, 0U);
  EXPECT_EQ(fill->progress().wasted, ByteCount{});
  EXPECT_GT(fill->progress().hit, ByteCount{1300 * 4096});
}

TEST_P(WorkingSets, OneThatCameWithThePackIsPrefetched) {
  start(test::pattern_source(kSourceSize));
  EXPECT_EQ(memory_->prefetch().error().code(), Errc::not_found);
  WorkingSet set{.name = "another", .size = kSourceSize, .folio_size = kPageSize, .complete = true, .runs = {}};
  set.runs.push_back({.folios = {.first = 700, .count = 300}, .at = {}});
  pack::WriterOptions options;
  options.working_set = working_set_bytes(std::span(&set, 1));
  const std::string path = directory_.path("pack");
  ASSERT_TRUE(pack::write_pack(*test::pattern_source(kSourceSize), path, options));
  auto source = open_source("pack:" + path);
  ASSERT_TRUE(source) << source.error().message();
  start(std::move(*source));
  auto fill = memory_->prefetch();
  ASSERT_TRUE(fill) << fill.error().message();
  const auto end = fill->wait(Deadline::after(test::kPatience));
  ASSERT_TRUE(end);
  EXPECT_EQ(end->end, FillEnd::complete);
  for (std::uint64_t page = 700; page < 1000; ++page) touch_right(page);
  EXPECT_EQ(engine_->report().faults_missing, 0U);
}

TEST_P(WorkingSets, WhatIsRecordedIsTheOrderOfTheTouches) {
  start(test::pattern_source(kSourceSize));
  auto recording = memory_->record(file_);
  ASSERT_TRUE(recording);
  for (const std::uint64_t page : {9000U, 3U, 12'000U, 9000U}) touch_right(page);
  ASSERT_TRUE(recording->save());
  const auto sets = read_working_sets(file_);
  ASSERT_TRUE(sets) << sets.error().message();
  std::vector<FolioIndex> first;
  for (const TouchedRun& run : sets->front().runs) first.push_back(run.folios.first);
  EXPECT_EQ(first, (std::vector<FolioIndex>{9000, 3, 12'000}));
}

TEST_P(WorkingSets, AFaultDoesNotWaitBehindWhatIsPrefetched) {
  WorkingSet set{.name = "x", .size = kSourceSize, .folio_size = kPageSize, .complete = true, .runs = {}};
  set.runs.push_back({.folios = {.first = 0, .count = 10'000}, .at = {}});
  ASSERT_TRUE(write_working_sets(file_, std::span(&set, 1)));
  const auto tickets = std::make_shared<test::Tickets>();
  start(test::ticket_source(tickets, kSourceSize));
  auto fill = memory_->prefetch(file_);
  ASSERT_TRUE(fill) << fill.error().message();
  // As much as may be in flight, and none of it is answered.
  constexpr std::size_t kInFlight = 8;
  ASSERT_TRUE(tickets->wait_for(kInFlight));
  std::jthread toucher([&] { touch_right(12'345); });
  ASSERT_TRUE(tickets->wait_for(kInFlight + 1)) << "the fault was not asked of the source";
  auto ticket = tickets->take({12'345ULL * 4096});
  ASSERT_TRUE(ticket);
  test::answer(std::move(*ticket));
  toucher.join();  // though nothing else was answered
  EXPECT_EQ(tickets->held(), kInFlight);
  fill->stop();
  tickets->answer_all();
}

TEST_P(WorkingSets, PopulatedMemoryIsThere) {
  start(test::pattern_source(kSourceSize));
  const BackgroundFill fill = memory_->populate_in_background();
  touch_right(16'000);
  const auto end = fill.wait(Deadline::after(test::kPatience));
  ASSERT_TRUE(end);
  EXPECT_EQ(end->end, FillEnd::complete);
  EXPECT_EQ(end->done, kSourceSize);
  const std::uint64_t before = engine_->report().faults_missing;
  for (std::uint64_t page = 0; page < kSourceSize.value / 4096; page += 7) touch_right(page);
  EXPECT_EQ(engine_->report().faults_missing, before);
}

INSTANTIATE_TEST_SUITE_P(Policies, WorkingSets, testing::Values(HandlerPolicy::per_cpu, HandlerPolicy::in_thread),
                         [](const auto& policy) {
                           return policy.param == HandlerPolicy::per_cpu ? "per_cpu" : "in_thread";
                         });

}  // namespace
}  // namespace uffda
