// The file of a working set, and the recorder that makes one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <thread>

#include "mm/folio_bits.h"
#include "monitors/recording_file.h"
#include "monitors/working_set.h"
#include "monitors/working_set_recorder.h"
#include "support/handoff_support.h"
#include "support/mm_core_fixture.h"

namespace uffda {
namespace {

using std::chrono::milliseconds;
using test::CoreTest;
using testing::HasSubstr;

std::vector<WorkingSet> two_sets() {
  return {{.name = "disk",
           .size = {40'961},
           .folio_size = kPageSize,
           .complete = true,
           .runs = {{.folios = {.first = 10, .count = 1}, .at = milliseconds(0)},
                    {.folios = {.first = 2, .count = 5}, .at = milliseconds(7)}}},
          {.name = "odd name", .size = 4_MiB, .folio_size = 2_MiB, .complete = false, .runs = {}}};
}

TEST(WorkingSetFile, ComesBackAsItWasWritten) {
  const test::TempDir directory;
  const std::string file = directory.path("ws");
  ASSERT_TRUE(write_working_sets(file, two_sets()));
  const auto read = read_working_sets(file);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(*read, two_sets());
}

TEST(WorkingSetFile, IsRefusedWithAnyByteChanged) {
  const std::vector<std::byte> good = working_set_bytes(two_sets());
  ASSERT_TRUE(parse_working_sets(good));
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (const unsigned flip : {0x01U, 0x80U, 0xFFU}) {
      std::vector<std::byte> bad = good;
      bad[at] ^= static_cast<std::byte>(flip);
      EXPECT_FALSE(parse_working_sets(bad)) << "byte " << at;
    }
  }
}

TEST(WorkingSetFile, IsRefusedTruncatedAndWithMoreBehindIt) {
  std::vector<std::byte> bytes = working_set_bytes(two_sets());
  for (std::size_t size = 0; size < bytes.size(); ++size)
    EXPECT_FALSE(parse_working_sets(std::span(bytes).first(size))) << size;
  bytes.resize(bytes.size() + 8);
  EXPECT_FALSE(parse_working_sets(bytes));
}

TEST(WorkingSetFile, RunsBeyondTheirObjectAreRefused) {
  std::vector<WorkingSet> sets = two_sets();
  sets[0].runs.push_back({.folios = {.first = 11, .count = 1}, .at = {}});
  EXPECT_FALSE(parse_working_sets(working_set_bytes(sets)));
  sets[0].runs.back() = {.folios = {.first = 9, .count = 3}, .at = {}};
  EXPECT_FALSE(parse_working_sets(working_set_bytes(sets)));
}

TEST(WorkingSetFile, RunsThatRepeatThemselvesWithoutEndAreRefused) {
  std::vector<WorkingSet> sets = two_sets();
  for (int i = 0; i < 3; ++i) sets[0].runs.push_back({.folios = {.first = 0, .count = 2}, .at = {}});
  EXPECT_FALSE(parse_working_sets(working_set_bytes(sets))) << "12 folios, and the object has 11";
}

TEST(WorkingSetFile, SaysWhatItIsNot) {
  const auto parsed = parse_working_sets(std::as_bytes(std::span("this is no working set, but it is long enough")));
  ASSERT_FALSE(parsed);
  EXPECT_THAT(parsed.error().message(), HasSubstr("--record"));
}

TEST(WorkingSetFile, IsFoundByNameOrAsTheOnlyOne) {
  const std::vector<WorkingSet> sets = two_sets();
  EXPECT_EQ(find_working_set(sets, "disk", {40'961}, 2).value(), &sets[0]);
  EXPECT_EQ(find_working_set(sets, "other", {40'961}, 2).error().code(), Errc::not_found);
  EXPECT_EQ(find_working_set(sets, "disk", {40'960}, 2).error().code(), Errc::invalid_argument);
  EXPECT_EQ(find_working_set(std::span(sets).first(1), "other", {40'961}, 1).value(), &sets[0]);
  EXPECT_EQ(find_working_set(std::span(sets).first(1), "other", {40'961}, 2).error().code(), Errc::not_found);
}

TEST(FolioBitsOfAnObject, AgreeWithASet) {
  constexpr std::uint64_t kFolios = 1000;
  auto bits = FolioBits::create(kFolios);
  ASSERT_TRUE(bits);
  std::set<FolioIndex> model;
  std::mt19937_64 random(3);
  for (int i = 0; i < 3000; ++i) {
    const FolioRange range{.first = random() % kFolios, .count = random() % 150};
    if (random() % 3 == 0) {
      EXPECT_EQ(bits->test_and_clear(range.first), model.erase(range.first) == 1);
      continue;
    }
    std::vector<FolioIndex> fresh;
    bits->set(range, [&](FolioRange run) {
      EXPECT_TRUE(fresh.empty() || run.first > fresh.back() + 1) << "runs are as long as they can be";
      for (FolioIndex f = run.first; f < run.end(); ++f) fresh.push_back(f);
    });
    std::vector<FolioIndex> wanted;
    for (FolioIndex f = range.first; f < std::min(range.end(), kFolios); ++f) {
      if (model.insert(f).second) wanted.push_back(f);
    }
    ASSERT_EQ(fresh, wanted);
    EXPECT_EQ(bits->count({.first = 0, .count = kFolios}), model.size());
  }
}

class Recorder : public CoreTest {
 protected:
  void record(std::uint64_t folios, std::size_t most_runs = kMaxTouchedRuns) {
    make_object(kPageSize * folios);
    auto recorder = WorkingSetRecorder::create(*object_, "it", most_runs);
    ASSERT_TRUE(recorder);
    recorder_ = *recorder;
    ASSERT_TRUE(object_->observe(recorder_));
  }
  std::vector<FolioRange> runs() const {
    std::vector<FolioRange> runs;
    for (const TouchedRun& run : recorder_->snapshot().runs) runs.push_back(run.folios);
    return runs;
  }
  std::shared_ptr<WorkingSetRecorder> recorder_;
};

TEST_F(Recorder, HasFirstTouchesInTheirOrder) {
  record(1000);
  for (const FolioIndex i : {500U, 3U, 900U, 3U, 500U}) fault(i);
  tickets_->answer_all();
  fault(3);    // cached by now
  fault(501);  // next to a known one
  tickets_->answer_all();
  EXPECT_THAT(runs(),
              testing::ElementsAre(FolioRange{500, 1}, FolioRange{3, 1}, FolioRange{900, 1}, FolioRange{501, 1}));
}

TEST_F(Recorder, HasReadsAndNeighboursThatAreMapped) {
  record(1000);
  std::vector<std::byte> bytes(3 * 4096);
  std::thread answering([&] {
    while (object_->folios_present() < 4) tickets_->answer_all();
  });
  ASSERT_TRUE(object_->read({100 * 4096 + 1}, bytes, Deadline::after(test::kPatience)));
  answering.join();
  EXPECT_THAT(runs(), testing::ElementsAre(FolioRange{100, 4}));
}

TEST_F(Recorder, WhatNobodyTouchesIsNotInIt) {
  record(1000);
  ASSERT_TRUE(object_->prefetch({.first = 0, .count = 64}, 1_MiB));
  tickets_->answer_all();
  EXPECT_EQ(object_->folios_present(), 64U);
  EXPECT_TRUE(runs().empty());
  fault(9);
  EXPECT_THAT(runs(), testing::ElementsAre(FolioRange{9, 1}));
}

TEST_F(Recorder, SaysWhenItsRoomWasNotEnough) {
  record(1000, 4);
  for (FolioIndex i = 0; i < 10; ++i) fault(i * 50);
  tickets_->answer_all();
  EXPECT_EQ(recorder_->snapshot().runs.size(), 4U);
  EXPECT_FALSE(recorder_->snapshot().complete);
}

TEST_F(Recorder, ThreadsTogetherRecordEachFolioOnce) {
  record(4096);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < 20'000; ++i) recorder_->touched({.first = random() % 4096, .count = 1 + random() % 40});
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<bool> seen(4096);
  for (const FolioRange run : runs()) {
    for (FolioIndex i = run.first; i < run.end(); ++i) {
      EXPECT_FALSE(seen[i]) << i;
      seen[i] = true;
    }
  }
  EXPECT_TRUE(std::ranges::all_of(seen, std::identity{}));
}

TEST_F(Recorder, AFileThatCannotBeWrittenIsFoundOutAtTheStart) {
  record(10);
  const auto recording = RecordingFile::create("/nonexistent/ws", {recorder_});
  ASSERT_FALSE(recording);
  EXPECT_THAT(recording.error().message(), HasSubstr("/nonexistent/ws"));
}

TEST_F(Recorder, WhatAnEarlierRunRecordedStaysUntilThereIsMore) {
  const test::TempDir directory;
  const std::string file = directory.path("ws");
  ASSERT_TRUE(write_working_sets(file, two_sets()));
  record(10);
  const auto recording = RecordingFile::create(file, {recorder_});
  ASSERT_TRUE(recording) << recording.error().message();
  EXPECT_EQ(read_working_sets(file).value(), two_sets());
  fault(4);
  ASSERT_TRUE((*recording)->save());
  const auto sets = read_working_sets(file);
  ASSERT_TRUE(sets);
  ASSERT_EQ(sets->size(), 1U);
  EXPECT_EQ(sets->front().runs.front().folios, (FolioRange{4, 1}));
  tickets_->answer_all();
}

}  // namespace
}  // namespace uffda
