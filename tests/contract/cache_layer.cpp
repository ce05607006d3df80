// cache+ in the source contract, and what is particular to it.
#include <gtest/gtest.h>

#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include "contract/source_contract.h"
#include "support/nbd_server.h"
#include "support/test_support.h"
#include "uffda/source_registry.h"

namespace uffda::test {
namespace {

class NbdkitBehind final : public SourceServer {
 public:
  static Result<std::unique_ptr<SourceServer>> serve(const PatternFile& file) {
    auto server = Nbdkit::start(file.beside("socket"), {"file", file.path()});
    if (!server) return std::unexpected(server.error());
    return std::make_unique<NbdkitBehind>(std::move(*server));
  }
  explicit NbdkitBehind(Nbdkit server) : server_(std::move(server)) {}
  [[nodiscard]] std::string uri() const override { return server_.uri(); }

 private:
  Nbdkit server_;
};

const std::vector<SourceCase> kCacheCases{
    {.name = "cache_file", .uri = "cache+file:@?dir=@.cache&size=16M"},
    {.name = "cache_smallest", .uri = "cache+file:@?dir=@.cache&size=4M"},
    {.name = "cache_zero", .uri = "cache+zero:1049810?dir=@.cache&size=4M&version=1", .zeroes = true},
    {.name = "cache_nbd", .uri = "cache+#&dir=@.cache&size=16M&version=1", .serve = NbdkitBehind::serve},
    {.name = "error_cache", .uri = "error+cache+file:@?dir=@.cache&size=16M&rate=0"},
    {.name = "cache_delay", .uri = "cache+delay+file:@?dir=@.cache&size=16M&delay=20us&jitter=20us"},
};

INSTANTIATE_TEST_SUITE_P(Cache, SourceContract, testing::ValuesIn(kCacheCases),
                         [](const testing::TestParamInfo<SourceCase>& info) { return info.param.name; });

/// What the scheme `remote:` of these tests is at the moment.
struct Remote {
  std::mutex mutex;
  std::vector<ByteRange> asked;
  std::vector<FetchTicket> held;
  bool hold = false;
  bool broken = false;
  ByteCount unit{1};
  std::string version = "1";

  [[nodiscard]] std::size_t count() {
    const std::lock_guard lock(mutex);
    return asked.size();
  }
  /// Waits until that many fetches are held, and answers them and all later ones.
  void release(std::size_t fetches) {
    std::vector<FetchTicket> tickets;
    while (tickets.empty()) {
      std::this_thread::yield();
      const std::lock_guard lock(mutex);
      if (held.size() < fetches) continue;
      tickets.swap(held);
      hold = false;
    }
    for (FetchTicket& ticket : tickets) answer(std::move(ticket));
  }
};
Remote* remote = nullptr;

class RemoteSource final : public PageSource {
 public:
  explicit RemoteSource(ByteCount size) {
    opened("remote:" + std::to_string(size.value),
           {.size = size, .unit = remote->unit, .parallel = 256, .version = remote->version});
  }
  ~RemoteSource() override {
    for (FetchTicket& ticket : remote->held) std::move(ticket).fail(Error(Errc::cancelled, "closed"));
    remote->held.clear();
  }

 private:
  void do_fetch(FetchTicket ticket) noexcept override {
    {
      const std::lock_guard lock(remote->mutex);
      remote->asked.push_back(ticket.range());
      if (remote->hold) {
        remote->held.push_back(std::move(ticket));
        return;
      }
    }
    if (remote->broken) {
      std::move(ticket).fail(Error(Errc::io, "broken"));
    } else {
      answer(std::move(ticket));
    }
  }
};

class CacheLayer : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    (void)register_source({.name = "remote",
                           .syntax = "remote:SIZE",
                           .help = "for tests",
                           .parameters = {},
                           .open = [](const SourceUri& uri) -> Result<std::unique_ptr<PageSource>> {
                             return std::make_unique<RemoteSource>(*parse_size(uri.rest()));
                           },
                           .parameters_of = nullptr,
                           .create = nullptr});
  }
  void SetUp() override { remote = &remote_; }

  std::unique_ptr<PageSource> open(const std::string& more = {}, const std::string& size = "1100000") {
    auto source = open_source("cache+remote:" + size + "?size=16M&dir=" + file_.beside("cache") + more);
    EXPECT_TRUE(source.has_value()) << source.error().message();
    return source ? std::move(*source) : nullptr;
  }
  static void expect_pattern(PageSource& source, std::uint64_t offset, std::uint64_t length) {
    const Buffer buffer(length);
    const auto done = fetch(source, offset, buffer.bytes());
    ASSERT_TRUE(done.has_value()) << done.error().message();
    ASSERT_EQ(Pattern::mismatch(buffer.bytes(), offset), std::nullopt);
  }
  static void expect_pattern(PageSource& source) {
    for (std::uint64_t at = 0; at < source.properties().size.value; at += 100000)
      expect_pattern(source, at, std::min<std::uint64_t>(100000, source.properties().size.value - at));
  }

  PatternFile file_{0};  // for its directory
  Remote remote_;
};

TEST_F(CacheLayer, asks_for_whole_pieces_once_and_never_again) {
  {
    const auto source = open();
    ASSERT_NE(source, nullptr);
    EXPECT_EQ(source->properties().unit.value, kPiece);
    expect_pattern(*source, 4096, 4096);
    ASSERT_EQ(remote_.count(), 1U);
    EXPECT_EQ(remote_.asked[0], (ByteRange{{0}, {kPiece}}));
    expect_pattern(*source);
  }
  EXPECT_EQ(remote_.count(), 17U);
  const auto again = open();
  ASSERT_NE(again, nullptr);
  expect_pattern(*again);
  EXPECT_EQ(remote_.count(), 17U);
}

TEST_F(CacheLayer, asks_for_whole_units_of_the_source) {
  remote_.unit = {256 * 1024};
  const auto source = open();
  ASSERT_NE(source, nullptr);
  EXPECT_EQ(source->properties().unit.value, 256U * 1024);
  expect_pattern(*source, 300000, 10);
  ASSERT_EQ(remote_.count(), 1U);
  EXPECT_EQ(remote_.asked[0], (ByteRange{{256 * 1024}, {256 * 1024}}));
  expect_pattern(*source, 256 * 1024, 256 * 1024);
  EXPECT_EQ(remote_.count(), 1U);
}

TEST_F(CacheLayer, does_not_take_other_bytes_for_these) {
  expect_pattern(*open());
  ASSERT_EQ(remote_.count(), 17U);
  expect_pattern(*open({}, "1200000"));
  EXPECT_EQ(remote_.count(), 36U) << "of another size";
  remote_.version = "2";
  expect_pattern(*open());
  EXPECT_EQ(remote_.count(), 53U) << "of another version";
  expect_pattern(*open("&version=1"));
  EXPECT_EQ(remote_.count(), 53U) << "the version that is said comes first";
}

TEST_F(CacheLayer, fetches_a_piece_once_however_many_want_it) {
  remote_.hold = true;
  const auto source = open();
  ASSERT_NE(source, nullptr);
  constexpr std::size_t kWaiting = 16;
  const Buffer buffer(kWaiting * 4096);
  std::array<Answer, kWaiting> answers;
  for (std::size_t i = 0; i < kWaiting; ++i)
    start_fetch(*source, answers.at(i), i * 4096, buffer.bytes().subspan(i * 4096, 4096));
  // A piece of its own at the end: when the source has been asked for that, it has been asked for all.
  const Buffer last(4096);
  Answer end;
  start_fetch(*source, end, 10 * kPiece, last.bytes());
  remote_.release(2);
  for (Answer& answer : answers) ASSERT_TRUE(answer.wait().has_value());
  ASSERT_TRUE(end.wait().has_value());
  EXPECT_EQ(Pattern::mismatch(buffer.bytes(), 0), std::nullopt);
  EXPECT_LE(remote_.count(), 3U);
}

TEST_F(CacheLayer, has_64_fetches_in_flight_at_once) {
  remote_.hold = true;
  const auto source = open({}, "8M");
  ASSERT_NE(source, nullptr);
  const Buffer buffer(64 * 4096);
  std::array<Answer, 64> answers;
  for (std::size_t i = 0; i < 64; ++i)
    start_fetch(*source, answers.at(i), i * kPiece, buffer.bytes().subspan(i * 4096, 4096));
  remote_.release(64);  // answers none before it has all
  for (Answer& answer : answers) ASSERT_TRUE(answer.wait().has_value());
}

TEST_F(CacheLayer, passes_a_failure_on_and_does_not_keep_it) {
  const auto source = open();
  ASSERT_NE(source, nullptr);
  remote_.broken = true;
  const Buffer buffer(4096);
  const auto done = fetch(*source, 0, buffer.bytes());
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().context(), "broken");
  remote_.broken = false;
  expect_pattern(*source, 0, 4096);
}

TEST_F(CacheLayer, does_not_let_the_deadline_of_one_fail_another) {
  remote_.hold = true;
  const auto source = open();
  ASSERT_NE(source, nullptr);
  const Buffer buffer(8192);
  Answer impatient;
  Answer patient;
  start_fetch(*source, impatient, 0, buffer.bytes().first(4096), Deadline::after(std::chrono::milliseconds(50)));
  while (remote_.count() == 0) std::this_thread::yield();
  start_fetch(*source, patient, 4096, buffer.bytes().subspan(4096));
  std::vector<FetchTicket> tickets;
  while (tickets.empty()) {
    std::this_thread::yield();
    const std::lock_guard lock(remote_.mutex);
    if (!remote_.held.empty() && remote_.held.front().deadline().passed()) tickets.swap(remote_.held);
  }
  for (FetchTicket& ticket : tickets) std::move(ticket).fail(Error(Errc::timed_out, "too late"));
  // Either the patient one was in time for the first fetch and is asked for again, or it has one of its own.
  const auto first = impatient.wait();
  remote_.release(1);
  ASSERT_TRUE(patient.wait().has_value()) << patient.wait().error().message();
  EXPECT_EQ(Pattern::mismatch(buffer.bytes().subspan(4096), 4096), std::nullopt);
  if (!first) EXPECT_EQ(first.error().code(), Errc::timed_out);
}

TEST_F(CacheLayer, says_what_is_missing) {
  const auto no_directory = open_source("cache+remote:1M");
  ASSERT_FALSE(no_directory.has_value());
  EXPECT_NE(no_directory.error().context().find("dir= is missing"), std::string::npos);
  const auto small = open_source("cache+remote:1M?size=1M&dir=" + file_.beside("cache"));
  ASSERT_FALSE(small.has_value());
  EXPECT_NE(small.error().context().find("at least 4M"), std::string::npos) << small.error().context();
}

TEST_F(CacheLayer, fetches_again_what_was_damaged_on_the_disk) {
  expect_pattern(*open());
  const std::size_t before = remote_.count();
  {
    std::fstream file(file_.beside("cache/uffda-cache"), std::ios::in | std::ios::out | std::ios::binary);
    for (std::uint64_t at = 40000; at < 16'000'000; at += 4096) file.seekp(static_cast<long>(at)).put('\x55');
  }
  expect_pattern(*open());
  EXPECT_EQ(remote_.count(), before + 17);
}

TEST_F(CacheLayer, goes_on_without_caching_when_the_disk_is_full) {
  bool mounted = false;
  std::thread([&] {
    // A disk of 1 MiB that only this thread sees; the file of the cache is opened here.
    std::filesystem::create_directory(file_.beside("cache"));
    if (::unshare(CLONE_NEWNS) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", file_.beside("cache").c_str(), "tmpfs", 0, "size=1m") != 0)
      return;
    mounted = true;
    const auto source = open({}, "4M");
    ASSERT_NE(source, nullptr);
    expect_pattern(*source);
    const std::size_t at_first = remote_.count();
    expect_pattern(*source);
    struct statfs disk{};
    ASSERT_EQ(::statfs(file_.beside("cache").c_str(), &disk), 0);
    EXPECT_LT(disk.f_bfree, 17U) << "it was not full";
    EXPECT_LT(remote_.count(), 2 * at_first) << "what fits is cached";
    // Not even room for the descriptions.
    std::filesystem::remove(file_.beside("cache/uffda-cache"));
    std::ofstream(file_.beside("cache/ballast")) << std::string(2 << 20, 'x');
    const auto uncached = open({}, "4M");
    ASSERT_NE(uncached, nullptr);
    expect_pattern(*uncached);
  }).join();
  if (!mounted) GTEST_SKIP() << "needs the right to mount a tmpfs";
}

}  // namespace
}  // namespace uffda::test
