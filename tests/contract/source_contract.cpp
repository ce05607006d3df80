#include "contract/source_contract.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <thread>

#include "support/test_support.h"
#include "uffda/source_registry.h"

namespace uffda::test {

PatternFile::PatternFile(std::uint64_t size) {
  std::string name = testing::TempDir() + "uffda-source-XXXXXX";
  if (::mkdtemp(name.data()) == nullptr) std::abort();
  directory_ = name;
  path_ = directory_ + "/data";
  std::vector<std::byte> bytes(size);
  Pattern::fill(bytes, 0);
  const int fd = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0 || ::write(fd, bytes.data(), bytes.size()) != static_cast<ssize_t>(size) || ::fsync(fd) != 0) std::abort();
  ::close(fd);
}

PatternFile::~PatternFile() { std::filesystem::remove_all(directory_); }

void PatternFile::resize(std::uint64_t size) const { std::filesystem::resize_file(path_, size); }

void PatternFile::drop_cache() const {
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  EXPECT_EQ(::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
  ::close(fd);
}

Result<ByteCount> Answer::wait() {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, std::chrono::minutes(1), [this] { return result_.has_value(); })) {
    ADD_FAILURE() << "no answer within a minute";
    return fail(Errc::timed_out);
  }
  return *result_;
}

Result<void> WriteAnswer::wait() {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, std::chrono::minutes(1), [&] { return result_.has_value(); }))
    return fail(Errc::timed_out, "no answer within a minute");
  return *result_;
}

void WriteAnswer::written_back(void*, Result<void> result) noexcept {
  const std::scoped_lock lock(mutex_);
  result_ = std::move(result);
  changed_.notify_all();
}

int Answer::count() const {
  const std::lock_guard lock(mutex_);
  return count_;
}

void Answer::fetched(void*, Result<ByteCount> result) noexcept {
  if (then) then();
  const std::lock_guard lock(mutex_);
  ++count_;
  result_ = std::move(result);
  changed_.notify_all();
}

Buffer::Buffer(std::size_t size)
    : memory_(static_cast<std::byte*>(std::aligned_alloc(4096, align_up(size + 4096, 4096))), &std::free),
      bytes_(memory_.get(), size) {
  std::ranges::fill(bytes_, std::byte{0xA5});
}

void start_fetch(PageSource& source, Answer& answer, std::uint64_t offset, std::span<std::byte> buffer,
                 Deadline deadline) {
  source.fetch(FetchTicket(answer, nullptr, {{offset}, {buffer.size()}}, buffer, deadline));
}

Result<ByteCount> fetch(PageSource& source, std::uint64_t offset, std::span<std::byte> buffer, Deadline deadline) {
  Answer answer;
  start_fetch(source, answer, offset, buffer, deadline);
  Result<ByteCount> result = answer.wait();
  EXPECT_EQ(answer.count(), 1);
  return result;
}

void SourceContract::SetUp() {
  std::string uri = GetParam().uri;
  for (std::size_t at = uri.find('@'); at != std::string::npos; at = uri.find('@')) uri.replace(at, 1, file_.path());
  if (GetParam().serve) {
    auto server = GetParam().serve(file_);
    if (!server && server.error().code() == Errc::unsupported) GTEST_SKIP() << server.error().message();
    ASSERT_TRUE(server.has_value()) << server.error().message();
    server_ = std::move(*server);
    if (const std::size_t at = uri.find('#'); at != std::string::npos) uri.replace(at, 1, server_->uri());
  }
  auto opened = open_source(uri);
  if (!opened && opened.error().code() == Errc::unsupported) GTEST_SKIP() << opened.error().message();
  ASSERT_TRUE(opened.has_value()) << opened.error().message();
  source_ = std::move(*opened);
}

std::optional<std::uint64_t> SourceContract::mismatch(std::span<const std::byte> bytes, std::uint64_t offset) const {
  if (!GetParam().zeroes) return Pattern::mismatch(bytes, offset);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != std::byte{0}) return offset + i;
  }
  return std::nullopt;
}

namespace {

/// The part for sources with a file behind them.
class FileContract : public SourceContract {};

/// A range in whole blocks, at random.
ByteRange random_range(std::mt19937_64& random, const SourceProperties& properties, std::uint64_t max_length) {
  const std::uint64_t block = properties.block_size.value;
  const std::uint64_t start = align_down(random() % properties.size.value, block);
  const std::uint64_t wanted = start + align_up(1 + random() % max_length, block);
  return {{start}, {std::min(wanted, properties.size.value) - start}};
}

TEST_P(SourceContract, says_what_it_is) {
  const SourceProperties& properties = source_->properties();
  EXPECT_EQ(properties.size.value, kSourceBytes);
  EXPECT_GE(properties.block_size.value, 1U);
  EXPECT_EQ(properties.block_size.value & (properties.block_size.value - 1), 0U) << "a power of two";
  EXPECT_LE(properties.block_size.value, 4096U) << "a folio must hold a block";
  EXPECT_GE(properties.parallel, 1U);
  EXPECT_FALSE(source_->name().empty());
}

TEST_P(SourceContract, gives_every_byte_cached_and_cold) {
  for (const bool cold : {false, true}) {
    if (cold) file_.drop_cache();
    for (const std::uint64_t piece : {4096U, 65536U, 262144U}) {
      const Buffer buffer(piece);
      for (std::uint64_t offset = 0; offset < kSourceBytes; offset += piece) {
        const auto bytes = buffer.bytes().first(std::min(piece, kSourceBytes - offset));
        const auto done = fetch(*source_, offset, bytes);
        ASSERT_TRUE(done.has_value()) << done.error().message();
        ASSERT_EQ(done->value, bytes.size());
        ASSERT_EQ(mismatch(bytes, offset), std::nullopt);
      }
    }
  }
}

TEST_P(SourceContract, gives_random_ranges_and_writes_nothing_beyond) {
  std::mt19937_64 random(11);
  const Buffer buffer(200000);
  for (int i = 0; i < 200; ++i) {
    if (i % 50 == 0) file_.drop_cache();
    const ByteRange range = random_range(random, source_->properties(), 150000);
    std::ranges::fill(buffer.bytes(), std::byte{0x5A});
    const auto bytes = buffer.bytes().first(range.length.value);
    const auto done = fetch(*source_, range.start.value, bytes);
    ASSERT_TRUE(done.has_value()) << done.error().message();
    ASSERT_EQ(mismatch(bytes, range.start.value), std::nullopt);
    const auto rest = buffer.bytes().subspan(bytes.size());
    ASSERT_TRUE(std::ranges::all_of(rest, [](std::byte byte) { return byte == std::byte{0x5A}; }));
  }
}

TEST_P(SourceContract, gives_the_same_into_its_arena_and_beside_it) {
  const Buffer arena(std::size_t{1} << 20U);
  source_->set_arena(arena.bytes());
  const Buffer outside(65536);
  file_.drop_cache();
  for (std::uint64_t offset = 0; offset + 65536 <= kSourceBytes; offset += 65536) {
    const auto inside = arena.bytes().subspan(offset % (1U << 20U), 65536);
    ASSERT_TRUE(fetch(*source_, offset, inside).has_value());
    ASSERT_EQ(mismatch(inside, offset), std::nullopt);
    ASSERT_TRUE(fetch(*source_, offset, outside.bytes()).has_value());
    ASSERT_EQ(mismatch(outside.bytes(), offset), std::nullopt);
  }
  source_.reset();  // before the arena
}

TEST_P(SourceContract, takes_buffers_at_any_address) {
  const Buffer buffer(65536 + 64);
  file_.drop_cache();
  for (const std::size_t shift : {1U, 8U, 63U}) {
    const auto bytes = buffer.bytes().subspan(shift, 65536);
    const auto done = fetch(*source_, 131072, bytes);
    ASSERT_TRUE(done.has_value()) << done.error().message();
    EXPECT_EQ(mismatch(bytes, 131072), std::nullopt);
  }
}

TEST_P(SourceContract, refuses_what_is_outside_of_it) {
  const Buffer buffer(8192);
  const std::uint64_t last_block = align_down(kSourceBytes - 1, 4096);
  const std::pair<std::uint64_t, std::size_t> wrong[] = {
      {kSourceBytes, 1},           {align_up(kSourceBytes, 4096), 4096}, {last_block, 4096}, {0, 0},
      {~std::uint64_t{0} - 1, 16}, {~std::uint64_t{0} - 4095, 4096},     {last_block, 8192}};
  for (const auto& [offset, length] : wrong) {
    const auto done = fetch(*source_, offset, buffer.bytes().first(length));
    ASSERT_FALSE(done.has_value()) << offset << "+" << length;
    EXPECT_EQ(done.error().code(), Errc::out_of_range);
  }
  EXPECT_EQ(source_->counters().fetches.load(), 0U) << "what was refused is not counted";
}

TEST_P(SourceContract, refuses_parts_of_blocks) {
  const std::uint64_t block = source_->properties().block_size.value;
  const Buffer buffer(8192);
  if (block == 1) {
    ASSERT_TRUE(fetch(*source_, 4097, buffer.bytes().first(3)).has_value()) << "any byte range is whole blocks";
    EXPECT_EQ(mismatch(buffer.bytes().first(3), 4097), std::nullopt);
    return;
  }
  for (const auto& [offset, length] : {std::pair{std::uint64_t{1}, block}, {0, block - 1}, {block / 2, 2 * block}}) {
    const auto done = fetch(*source_, offset, buffer.bytes().first(length));
    ASSERT_FALSE(done.has_value()) << offset << "+" << length;
    EXPECT_EQ(done.error().code(), Errc::out_of_range);
  }
}

TEST_P(SourceContract, refuses_a_buffer_that_is_too_small) {
  const Buffer buffer(4096);
  Answer answer;
  source_->fetch(FetchTicket(answer, nullptr, {{0}, {8192}}, buffer.bytes(), soon()));
  EXPECT_FALSE(answer.wait().has_value());
}

TEST_P(SourceContract, answers_many_in_flight_from_several_threads_each_once) {
  constexpr std::size_t kThreads = 4;
  constexpr std::size_t kEach = 15;
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, t] {
      std::mt19937_64 random(t);
      std::vector<Buffer> buffers;
      for (std::size_t i = 0; i < kEach; ++i) buffers.emplace_back(20000);
      for (int round = 0; round < 20; ++round) {
        if (round % 5 == 0) file_.drop_cache();
        std::vector<ByteRange> ranges;
        std::array<Answer, kEach> answers;
        for (std::size_t i = 0; i < kEach; ++i) {
          ranges.push_back(random_range(random, source_->properties(), 12000));
          start_fetch(*source_, answers[i], ranges[i].start.value, buffers[i].bytes().first(ranges[i].length.value));
        }
        for (std::size_t i = 0; i < kEach; ++i) {
          const auto done = answers[i].wait();
          ASSERT_TRUE(done.has_value()) << done.error().message();
          EXPECT_EQ(answers[i].count(), 1);
          EXPECT_EQ(mismatch(buffers[i].bytes().first(ranges[i].length.value), ranges[i].start.value), std::nullopt);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(source_->counters().fetches.load(), kThreads * kEach * 20);
}

TEST_P(SourceContract, has_room_for_a_fetch_that_is_started_by_an_answer) {
  // As many as are allowed at once; every answer starts the next one before the fetch that it ends is out of the way.
  const std::size_t chains = source_->properties().parallel;
  constexpr std::size_t kLinks = 3;
  file_.drop_cache();
  std::vector<Buffer> buffers;
  for (std::size_t i = 0; i < chains; ++i) buffers.emplace_back(4096);
  std::vector<Answer> answers(chains * kLinks);
  const auto start = [&](std::size_t chain, std::size_t link) {
    start_fetch(*source_, answers[chain * kLinks + link], (chain * 7 % 250) * 4096, buffers[chain].bytes());
  };
  for (std::size_t chain = 0; chain < chains; ++chain) {
    for (std::size_t link = 0; link + 1 < kLinks; ++link) {
      answers[chain * kLinks + link].then = [&start, chain, link] { start(chain, link + 1); };
    }
  }
  for (std::size_t chain = 0; chain < chains; ++chain) start(chain, 0);
  for (Answer& answer : answers) {
    const auto done = answer.wait();
    ASSERT_TRUE(done.has_value()) << done.error().message();
  }
  for (std::size_t chain = 0; chain < chains; ++chain) {
    EXPECT_EQ(mismatch(buffers[chain].bytes(), (chain * 7 % 250) * 4096), std::nullopt);
  }
}

TEST_P(SourceContract, reads_in_the_calling_thread_if_it_says_so) {
  const Buffer buffer(65536);
  const bool immediate = source_->properties().immediate;
  file_.drop_cache();
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{65536}, align_down(kSourceBytes, 4096)}) {
    const auto bytes = buffer.bytes().first(std::min<std::uint64_t>(65536, kSourceBytes - offset));
    const Result<void> done = source_->fetch_now({offset}, bytes);
    ASSERT_EQ(done.has_value(), immediate);
    if (immediate) {
      EXPECT_EQ(mismatch(bytes, offset), std::nullopt);
    } else {
      EXPECT_EQ(done.error().code(), Errc::unsupported);
    }
  }
  EXPECT_FALSE(source_->fetch_now({align_up(kSourceBytes, 4096)}, buffer.bytes()).has_value());
}

TEST_P(SourceContract, answers_every_ticket_before_it_is_gone) {
  for (int round = 0; round < 10; ++round) {
    if (round > 0) SetUp();
    if (round % 2 == 0) file_.drop_cache();
    constexpr std::size_t kTickets = 60;
    std::vector<Buffer> buffers;
    for (std::size_t i = 0; i < kTickets; ++i) buffers.emplace_back(16384);
    std::array<Answer, kTickets> answers;
    for (std::size_t i = 0; i < kTickets; ++i) start_fetch(*source_, answers[i], i * 16384, buffers[i].bytes());
    source_.reset();
    for (std::size_t i = 0; i < kTickets; ++i) {
      ASSERT_EQ(answers[i].count(), 1);
      const auto done = answers[i].wait();
      if (done) {
        EXPECT_EQ(mismatch(buffers[i].bytes(), i * 16384), std::nullopt);
      } else {
        EXPECT_EQ(done.error().code(), Errc::cancelled) << done.error().message();
      }
    }
  }
}

TEST_P(SourceContract, answers_a_fetch_whose_deadline_has_passed) {
  const Buffer buffer(65536);
  file_.drop_cache();
  const auto done = fetch(*source_, 0, buffer.bytes(), Deadline::at(Clock::now() - std::chrono::seconds(1)));
  if (done) {
    EXPECT_EQ(mismatch(buffer.bytes(), 0), std::nullopt);
  } else {
    EXPECT_EQ(done.error().code(), Errc::timed_out) << done.error().message();
  }
}

TEST_P(FileContract, never_shows_zeroes_for_a_file_that_shrank) {
  constexpr std::uint64_t kLeft = 300000;
  const Buffer buffer(65536);
  file_.resize(kLeft);
  for (std::uint64_t offset = 0; offset < kSourceBytes; offset += 65536) {
    const auto bytes = buffer.bytes().first(std::min<std::uint64_t>(65536, kSourceBytes - offset));
    const auto done = fetch(*source_, offset, bytes);
    EXPECT_EQ(done.has_value(), offset + bytes.size() <= kLeft) << offset;
    if (done) {
      EXPECT_EQ(mismatch(bytes, offset), std::nullopt);
    } else {
      EXPECT_EQ(done.error().code(), Errc::io);
      EXPECT_NE(done.error().context().find("shrank"), std::string::npos) << done.error().context();
    }
    if (source_->properties().immediate) {
      EXPECT_EQ(source_->fetch_now({offset}, bytes).has_value(), done.has_value());
    }
  }
}

TEST_P(FileContract, keeps_its_size_when_the_file_grows) {
  file_.resize(2 * kSourceBytes);
  const std::uint64_t tail = align_down(kSourceBytes, 4096);
  const Buffer buffer(8192);
  EXPECT_EQ(source_->properties().size.value, kSourceBytes);
  ASSERT_TRUE(fetch(*source_, tail, buffer.bytes().first(kSourceBytes - tail)).has_value());
  EXPECT_EQ(mismatch(buffer.bytes().first(kSourceBytes - tail), tail), std::nullopt);
  EXPECT_FALSE(fetch(*source_, tail, buffer.bytes().first(4096)).has_value());
}

TEST_P(SourceContract, counts_what_it_was_asked_for) {
  const Buffer buffer(8192);
  ASSERT_TRUE(fetch(*source_, 0, buffer.bytes()).has_value());
  ASSERT_TRUE(fetch(*source_, 8192, buffer.bytes().first(4096)).has_value());
  EXPECT_EQ(source_->counters().fetches.load(), 2U);
  EXPECT_EQ(source_->counters().bytes.load(), 12288U);
}

const std::vector<SourceCase> kFileCases{
    {"file", "file:@"},
    {"file_uring", "file:@?io=uring"},
    {"file_threads", "file:@?io=threads"},
    {"file_direct", "file:@?direct=on"},
    {"file_direct_threads", "file:@?direct=on&io=threads"},
    {"file_direct_if_possible", "file:@?direct=auto"},
    {"delay", "delay+file:@?delay=20us&jitter=20us"},
    {"error", "error+file:@?rate=0"},
    {"evict", "evict+file:@?every=20us"},
    {"log", "log+file:@?file=@.log"},
    {"all_layers", "log+delay+error+file:@?direct=auto&delay=5us&rate=0&file=@.log"},
};
const std::vector<SourceCase> kOtherCases{
    {"zero", "zero:1049810", true},
    {"delay_zero", "delay+zero:1049810?delay=5us", true},
};

std::string name_of(const testing::TestParamInfo<SourceCase>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Files, SourceContract, testing::ValuesIn(kFileCases), name_of);
INSTANTIATE_TEST_SUITE_P(Files, FileContract, testing::ValuesIn(kFileCases), name_of);
INSTANTIATE_TEST_SUITE_P(Others, SourceContract, testing::ValuesIn(kOtherCases), name_of);

}  // namespace
}  // namespace uffda::test
