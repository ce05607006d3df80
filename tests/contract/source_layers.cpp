// What each layer does beside what every source must do.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "contract/source_contract.h"
#include "support/test_support.h"

namespace uffda::test {
namespace {

std::unique_ptr<PageSource> open_ok(const std::string& uri) {
  auto source = open_source(uri);
  EXPECT_TRUE(source.has_value()) << uri << ": " << source.error().message();
  return source ? std::move(*source) : nullptr;
}

bool succeeds(PageSource& source, std::uint64_t offset, std::uint64_t length) {
  const Buffer buffer(length);
  return fetch(source, offset, buffer.bytes()).has_value();
}

/// Which of the first `count` page fetches fail.
std::string failures(const std::string& uri, std::size_t count) {
  const auto source = open_ok(uri);
  std::string pattern;
  for (std::size_t i = 0; i < count; ++i) pattern += succeeds(*source, i * 4096, 4096) ? '.' : 'x';
  return pattern;
}

TEST(ErrorLayer, fails_exactly_the_fetches_that_touch_its_range) {
  const auto source = open_ok("error+zero:1M?range=64K-68K");
  EXPECT_TRUE(succeeds(*source, 60 << 10U, 4096));
  EXPECT_FALSE(succeeds(*source, 64 << 10U, 4096));
  EXPECT_TRUE(succeeds(*source, 68 << 10U, 4096));
  EXPECT_FALSE(succeeds(*source, 0, 65537)) << "touches the first byte";
  EXPECT_FALSE(succeeds(*source, (68 << 10U) - 1, 4096)) << "touches the last byte";
  EXPECT_FALSE(succeeds(*source, 0, 1 << 20U)) << "contains the range";
}

TEST(ErrorLayer, says_that_the_failure_is_injected) {
  const auto source = open_ok("error+zero:1M");
  const Buffer buffer(4096);
  const auto done = fetch(*source, 8192, buffer.bytes());
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().code(), Errc::io);
  EXPECT_NE(done.error().context().find("injected failure of 4096 bytes at 8192"), std::string::npos);
  EXPECT_EQ(source->fetch_now({0}, buffer.bytes()).error().code(), Errc::io);
}

TEST(ErrorLayer, fails_at_its_rate_and_the_same_way_for_the_same_seed) {
  EXPECT_EQ(failures("error+zero:1M?rate=0", 200), std::string(200, '.'));
  EXPECT_EQ(failures("error+zero:1M?rate=1", 200), std::string(200, 'x'));
  const std::string some = failures("error+zero:1M?rate=0.25&seed=5", 256);
  EXPECT_EQ(some, failures("error+zero:1M?rate=0.25&seed=5", 256));
  EXPECT_NE(some, failures("error+zero:1M?rate=0.25&seed=6", 256));
  const auto hits = std::ranges::count(some, 'x');
  EXPECT_GT(hits, 30);
  EXPECT_LT(hits, 100);
}

TEST(ErrorLayer, fails_after_a_number_of_fetches) {
  EXPECT_EQ(failures("error+zero:1M?after=3", 6), "...xxx");
  EXPECT_EQ(failures("error+zero:1M?after=2&range=0-12K", 6), "..x...") << "all conditions must hold";
}

TEST(ErrorLayer, never_answers_until_it_goes_when_it_is_told_so) {
  auto source = open_ok("error+zero:1M?mode=never&range=0-4K");
  EXPECT_FALSE(source->properties().immediate) << "fetch_now could not return";
  const Buffer buffer(4096);
  Answer answer;
  start_fetch(*source, answer, 0, buffer.bytes());
  EXPECT_TRUE(succeeds(*source, 4096, 4096)) << "others go on";
  EXPECT_EQ(answer.count(), 0);
  source.reset();
  ASSERT_EQ(answer.count(), 1);
  EXPECT_EQ(answer.wait().error().code(), Errc::cancelled);
}

/// Hears what is to be dropped.
class CountingSink final : public PageSink {
 public:
  explicit CountingSink(ByteCount size) : size_(size) {}
  Result<void> supply(ByteOffset, std::span<const std::byte>) override { return {}; }
  Result<void> fail(ByteRange, const Error&) override { return {}; }
  Result<void> invalidate(ByteRange range) override {
    if (range.length.value == 0 || range.end().value > size_.value) ++wrong;
    ++count;
    count.notify_all();
    return {};
  }
  std::atomic<unsigned> count{0};
  std::atomic<unsigned> wrong{0};

 private:
  ByteCount size_;
};

TEST(EvictLayer, says_again_and_again_that_pages_of_the_source_are_to_go) {
  auto source = open_ok("evict+zero:1049810?every=1us");
  const auto sink = std::make_shared<CountingSink>(source->properties().size);
  source->attach(sink);
  for (unsigned seen = 0; seen < 1000; seen = sink->count) sink->count.wait(seen);
  source.reset();
  EXPECT_EQ(sink->wrong, 0U);
}

TEST(DelayLayer, holds_fetches_back_and_cancels_them_when_it_goes) {
  auto source = open_ok("delay+zero:1M?delay=1h");
  std::vector<Buffer> buffers;
  for (int i = 0; i < 50; ++i) buffers.emplace_back(4096);
  std::array<Answer, 50> answers;
  for (std::size_t i = 0; i < answers.size(); ++i) start_fetch(*source, answers[i], i * 4096, buffers[i].bytes());
  for (const Answer& answer : answers) EXPECT_EQ(answer.count(), 0);
  source.reset();
  for (Answer& answer : answers) {
    ASSERT_EQ(answer.count(), 1);
    EXPECT_EQ(answer.wait().error().code(), Errc::cancelled);
  }
}

TEST(DelayLayer, fails_a_fetch_whose_deadline_passed_meanwhile) {
  const auto source = open_ok("delay+zero:1M?delay=1us");
  const Buffer buffer(4096);
  const auto done = fetch(*source, 0, buffer.bytes(), Deadline::at(Clock::now()));
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().code(), Errc::timed_out);
}

TEST(DelayLayer, carries_no_more_than_its_bandwidth) {
  auto source = open_ok("delay+zero:1M?bandwidth=64K");
  const Buffer buffer(65536);
  Answer answer;
  const TimePoint start = Clock::now();
  start_fetch(*source, answer, 0, buffer.bytes());
  ASSERT_TRUE(answer.wait().has_value());
  EXPECT_GE(Clock::now() - start, std::chrono::milliseconds(990)) << "64 KiB at 64 KiB a second";
  EXPECT_FALSE(open_source("delay+zero:1M?bandwidth=0").has_value());
  EXPECT_FALSE(open_source("delay+zero:1M?bandwidth=fast").has_value());
}

TEST(DelayLayer, refuses_more_than_it_may_hold) {
  auto source = open_ok("delay+zero:1M?delay=1h");
  const Buffer buffer(4096);
  std::vector<Answer> answers(source->properties().parallel);
  for (Answer& answer : answers) start_fetch(*source, answer, 0, buffer.bytes());
  const auto done = fetch(*source, 0, buffer.bytes());
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().code(), Errc::busy);
  source.reset();  // before the answers that it owes
}

TEST(LogLayer, writes_a_line_for_every_fetch) {
  const PatternFile file(65536);
  const auto source = open_ok("log+error+file:" + file.path() + "?range=8K-12K&file=" + file.beside("log"));
  const Buffer buffer(4096);
  EXPECT_TRUE(fetch(*source, 4096, buffer.bytes()).has_value());
  EXPECT_FALSE(fetch(*source, 8192, buffer.bytes()).has_value());
  EXPECT_TRUE(source->fetch_now({0}, buffer.bytes()).has_value());
  std::ifstream log(file.beside("log"));
  std::vector<std::string> lines;
  for (std::string line; std::getline(log, line);) lines.push_back(line);
  ASSERT_EQ(lines.size(), 3U);
  EXPECT_NE(lines[0].find(" fetch offset=4096 length=4096 us="), std::string::npos) << lines[0];
  EXPECT_NE(lines[0].find("result=ok"), std::string::npos) << lines[0];
  EXPECT_NE(lines[1].find("result=io: "), std::string::npos) << lines[1];
  EXPECT_NE(lines[2].find(" now offset=0 "), std::string::npos) << lines[2];
}

TEST(LogLayer, says_which_file_it_cannot_write) {
  const auto source = open_source("log+zero:1M?file=/nowhere/at/all");
  ASSERT_FALSE(source.has_value());
  EXPECT_NE(source.error().context().find("/nowhere/at/all"), std::string::npos);
}

TEST(Layers, stack_in_the_order_of_the_uri) {
  EXPECT_EQ(open_ok("log+delay+zero:1M")->name(), "log+delay+zero:1M");
  EXPECT_EQ(open_ok("delay+log+zero:1M")->name(), "delay+log+zero:1M");
}

}  // namespace
}  // namespace uffda::test
