// Memory that is written back on the real kernel: what sync() said is stored is what the file holds, whichever way
// faults are handled, while pages are evicted and the file refuses writes.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <setjmp.h>  // NOLINT(modernize-deprecated-headers): sigsetjmp is POSIX
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>
#include <vector>

#include "memtypes/builtin.h"
#include "mm/core.h"
#include "mm/memory_object.h"
#include "support/huge_pages.h"
#include "support/mm_kernel.h"
#include "support/scratch_file.h"
#include "support/test_support.h"
#include "uffda/uffda.h"

namespace uffda {
namespace {

using test::Pattern;
using test::ScratchFile;

Deadline soon() { return Deadline::after(std::chrono::seconds(30)); }

struct Way {
  const char* name;
  HandlerPolicy handlers;
  const char* type;
  std::uint64_t huge_pages = 0;
};

class WrittenBack : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
    if (GetParam().huge_pages != 0) huge_pages_ = test::HugePages(2_MiB, GetParam().huge_pages);
    if (!huge_pages_.refused().empty()) GTEST_SKIP() << huge_pages_.refused();
  }
  Memory map(const std::string& uri, ByteCount budget = {}, Duration deadline = std::chrono::seconds(20)) {
    auto engine = Engine::create({.handlers = GetParam().handlers, .budget = budget, .deadline = deadline});
    EXPECT_TRUE(engine) << engine.error().message();
    engine_.emplace(std::move(*engine));
    auto memory = engine_->map(uri, {.access = Access::written_back, .type = GetParam().type});
    EXPECT_TRUE(memory) << memory.error().message();
    return std::move(*memory);
  }
  [[nodiscard]] std::uint64_t pages(std::uint64_t small) const {
    return GetParam().huge_pages != 0 ? std::min<std::uint64_t>(small, 4) : small;
  }
  [[nodiscard]] std::uint64_t page() const { return GetParam().huge_pages != 0 ? (2_MiB).value : kPageSize.value; }

  test::HugePages huge_pages_;
  std::optional<Engine> engine_;
};

TEST_P(WrittenBack, WhatIsReadIsNotDirtyAndWhatIsWrittenIsStoredBySync) {
  const std::uint64_t size = pages(256) * page() - 100;
  const ScratchFile file(size);
  Memory memory = map(file.uri());
  ASSERT_EQ(Pattern::mismatch(memory.bytes(), 0), std::nullopt);
  EXPECT_EQ(memory.dirty().value, 0U);
  std::vector<std::byte> model = file.contents();
  for (std::uint64_t at = 1; at < size; at += 3 * page()) memory.writable_bytes()[at] = model[at] = std::byte{0x5A};
  memory.writable_bytes()[size - 1] = model[size - 1] = std::byte{0xA5};
  EXPECT_GT(memory.dirty().value, 0U);
  const auto synced = memory.sync(soon());
  ASSERT_TRUE(synced) << synced.error().message();
  EXPECT_EQ(memory.dirty().value, 0U);
  EXPECT_TRUE(file.contents() == model);
  // What is clean again is protected again.
  memory.writable_bytes()[1] = model[1] = std::byte{0x77};
  EXPECT_EQ(memory.dirty().value, page());
  ASSERT_TRUE(memory.sync({.start = {0}, .length = {1}}, soon()));
  EXPECT_TRUE(file.contents() == model);
}

TEST_P(WrittenBack, PagesThatAreWrittenBeforeTheyAreReadHoldTheRestOfTheirBytes) {
  const std::uint64_t size = pages(64) * page();
  const ScratchFile file(size);
  Memory memory = map(file.uri());
  std::vector<std::byte> model = file.contents();
  for (std::uint64_t at = 7; at < size; at += page()) memory.writable_bytes()[at] = model[at] = std::byte{1};
  ASSERT_TRUE(std::ranges::equal(memory.bytes(), model));
  ASSERT_TRUE(memory.sync(soon()));
  EXPECT_TRUE(file.contents() == model);
}

TEST_P(WrittenBack, TheEndStoresWhatIsDirty) {
  const std::uint64_t size = pages(64) * page();
  const ScratchFile file(size);
  std::vector<std::byte> model = file.contents();
  {
    Memory memory = map(file.uri());
    for (std::uint64_t at = 9; at < size; at += page()) memory.writable_bytes()[at] = model[at] = std::byte{2};
  }
  engine_.reset();
  EXPECT_TRUE(file.contents() == model);
}

TEST_P(WrittenBack, AnotherMappingSeesWhatIsWrittenAndWritesToo) {
  const std::uint64_t size = pages(16) * page();
  const ScratchFile file(size);
  Memory first = map(file.uri());
  auto second = first.map_again(Access::written_back);
  ASSERT_TRUE(second) << second.error().message();
  for (int round = 1; round < 20; ++round) {
    Memory& writer = round % 2 == 0 ? first : *second;
    Memory& reader = round % 2 == 0 ? *second : first;
    for (std::uint64_t at = 0; at < size; at += page()) writer.writable_bytes()[at] = static_cast<std::byte>(round);
    for (std::uint64_t at = 0; at < size; at += page()) ASSERT_EQ(reader.bytes()[at], static_cast<std::byte>(round));
    ASSERT_TRUE(reader.sync(soon()));
    const std::vector<std::byte> stored = file.contents();
    for (std::uint64_t at = 0; at < size; at += page()) ASSERT_EQ(stored[at], static_cast<std::byte>(round));
  }
}

TEST_P(WrittenBack, AWriteDuringAWritebackIsNotLost) {
  const std::uint64_t size = pages(16) * page();
  const ScratchFile file(size);
  Memory memory = map(file.uri("delay+", "?delay=5ms"));
  // Not an atomic there: the thread sanitizer would take the fault with locks of its own held.
  auto* const word = reinterpret_cast<volatile std::uint64_t*>(memory.writable_bytes().data());
  std::atomic<std::uint64_t> value{0};
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (std::uint64_t next = 1; !stop; ++next) {
      *word = next;
      value = next;
    }
  });
  while (value == 0) std::this_thread::yield();
  for (int round = 0; round < 40; ++round) {
    const std::uint64_t before = value;
    ASSERT_TRUE(memory.sync(soon()));
    std::uint64_t stored = 0;
    std::memcpy(&stored, file.contents().data(), sizeof stored);
    ASSERT_GE(stored, before);
  }
  stop = true;
  writer.join();
  ASSERT_TRUE(memory.sync(soon()));
  std::uint64_t stored = 0;
  std::memcpy(&stored, file.contents().data(), sizeof stored);
  EXPECT_EQ(stored, value.load());
}

TEST_P(WrittenBack, AFailureIsToldOnceToEachAndWhatFailedIsWrittenAgain) {
  const std::uint64_t size = pages(16) * page();
  const ScratchFile file(size);
  Memory memory = map(file.uri("error+", "?what=writes&range=0-1&rate=1"), {}, std::chrono::seconds(1));
  auto second = memory.map_again(Access::written_back);
  ASSERT_TRUE(second);
  memory.writable_bytes()[0] = std::byte{1};
  const auto failed = memory.sync(soon());
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code(), Errc::io);
  EXPECT_EQ(memory.dirty().value, page());
  EXPECT_EQ(memory.bytes()[0], std::byte{1});
  memory.writable_bytes()[size - 1] = std::byte{1};
  EXPECT_FALSE(second->sync({.start = {size - 1}, .length = {1}}, soon())) << "it was not told yet";
  EXPECT_TRUE(second->sync({.start = {size - 1}, .length = {1}}, soon())) << "told once, and this range is stored";
  EXPECT_FALSE(memory.sync(soon())) << "it was tried again, and failed again";
}

TEST_P(WrittenBack, ThreadsThatWriteReadAndSyncUnderASmallBudgetFindWhatTheyWrote) {
  const std::uint64_t count = pages(1024);
  const std::uint64_t size = count * page();
  const ScratchFile file(size);
  const ByteCount budget{std::max(size / 8, 2 * page())};
  Memory memory = map(file.uri("delay+error+", "?what=writes&rate=0.02&delay=100us&jitter=300us"), budget);
  constexpr std::uint64_t kThreads = 8;
  const std::uint64_t steps = GetParam().huge_pages != 0 ? 300 : 4'000;
  std::vector<std::thread> threads;
  for (std::uint64_t me = 0; me < kThreads; ++me) {
    threads.emplace_back([&, me] {
      // Every thread has a word of its own in every page.
      std::vector<std::uint64_t> model(count);
      const auto word = [&](std::uint64_t at) {
        return reinterpret_cast<volatile std::uint64_t*>(memory.writable_bytes().data() + at * page() + me * 512);
      };
      for (std::uint64_t at = 0; at < count; ++at) model[at] = *word(at);
      std::mt19937_64 random(me);
      for (std::uint64_t step = 0; step < steps; ++step) {
        const std::uint64_t at = random() % count;
        ASSERT_EQ(std::uint64_t{*word(at)}, model[at]);
        if (random() % 2 == 0) *word(at) = model[at] = random();
        if (random() % 500 != 0) continue;
        Result<void> synced = memory.sync(soon());
        while (!synced && synced.error().code() == Errc::io) synced = memory.sync(soon());
        ASSERT_TRUE(synced) << synced.error().message();
        const std::vector<std::byte> stored = file.contents();
        for (std::uint64_t i = 0; i < count; ++i) {
          std::uint64_t found = 0;
          std::memcpy(&found, stored.data() + i * page() + me * 512, sizeof found);
          ASSERT_EQ(found, model[i]) << "thread " << me << ", page " << i;
        }
      }
    });
  }
  std::atomic<bool> stop{false};
  std::thread sampler([&] {
    while (!stop) {
      ASSERT_LE(engine_->report().resident.value, budget.value);
      std::this_thread::yield();
    }
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  sampler.join();
  EXPECT_GT(engine_->report().folios_evicted, 0U);
  EXPECT_GT(engine_->report().writeback_failures, 0U);
}

INSTANTIATE_TEST_SUITE_P(Ways, WrittenBack,
                         testing::Values(Way{"shmem", HandlerPolicy::per_cpu, "shmem"},
                                         Way{"in_thread", HandlerPolicy::in_thread, "shmem"},
                                         Way{"hugetlb", HandlerPolicy::per_cpu, "hugetlb", 12}),
                         [](const auto& way) { return way.param.name; });

TEST(WritingBack, IsRefusedWhereItCannotBe) {
  if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  const ScratchFile file(1 << 16);
  const auto zeroes = map("zero:1M", {.access = Access::written_back});
  ASSERT_FALSE(zeroes);
  EXPECT_EQ(zeroes.error().code(), Errc::unsupported);
  const auto anonymous = map(file.uri(), {.access = Access::written_back, .type = "anon"});
  ASSERT_FALSE(anonymous);
  EXPECT_EQ(anonymous.error().code(), Errc::unsupported);
  auto read_only = map(file.uri());
  ASSERT_TRUE(read_only);
  EXPECT_FALSE(read_only->map_again(Access::written_back));
  EXPECT_FALSE(read_only->sync(soon()));
  ASSERT_EQ(::chmod(file.uri().c_str() + 5, 0400), 0);
}

class GrowingFile : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "/uffda-growing-XXXXXX";
    const int fd = ::mkstemp(path_.data());
    ASSERT_GE(fd, 0);
    std::vector<std::byte> bytes(kStart);
    Pattern::fill(bytes, 0);
    ASSERT_EQ(::write(fd, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    ::close(fd);
    core_ = *Core::create({});
    ASSERT_TRUE(register_builtin_types(core_->types()));
    auto source = open_source("file:" + path_, OpenFor::growing);
    ASSERT_TRUE(source) << source.error().message();
    auto object = core_->create_object(std::move(*source), "shmem", {}, OpenFor::growing);
    ASSERT_TRUE(object) << object.error().message();
    object_ = *object;
  }
  void TearDown() override {
    object_.reset();
    core_.reset();
    ::unlink(path_.c_str());
  }
  [[nodiscard]] std::uint64_t file_size() const { return std::filesystem::file_size(path_); }
  [[nodiscard]] std::vector<std::byte> read(std::uint64_t offset, std::uint64_t length) const {
    std::vector<std::byte> bytes(length);
    const auto read = object_->read({offset}, bytes, soon());
    EXPECT_TRUE(read) << read.error().message();
    return bytes;
  }
  void write(std::uint64_t offset, std::uint64_t length, int value) const {
    const std::vector<std::byte> bytes(length, static_cast<std::byte>(value));
    const auto written = object_->write({offset}, bytes, soon());
    EXPECT_TRUE(written) << written.error().message();
  }
  void sync() {
    const auto synced = object_->sync({.start = {0}, .length = {kMost}}, soon(), seen_);
    EXPECT_TRUE(synced) << synced.error().message();
  }
  static bool zero(const std::vector<std::byte>& bytes) {
    return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
  }

  static constexpr std::uint64_t kStart = 10'000;
  static constexpr std::uint64_t kMost = 1 << 20;
  std::string path_;
  std::shared_ptr<Core> core_;
  std::shared_ptr<MemoryObject> object_;
  std::uint64_t seen_ = 0;
};

TEST_F(GrowingFile, ItsEndMovesAndWhatIsBehindItIsZero) {
  using Resize = MemoryObject::Resize;
  EXPECT_EQ(object_->length().value, kStart);
  EXPECT_TRUE(zero(read(kStart, 20'000)));
  ASSERT_TRUE(object_->resize({50'000}, soon()));
  EXPECT_EQ(file_size(), 50'000U);
  write(40'000, 10'000, 7);
  ASSERT_TRUE(object_->resize({45'000}, soon(), Resize::grow));
  EXPECT_EQ(object_->length().value, 50'000U) << "somebody else has moved it further";
  sync();
  EXPECT_EQ(file_size(), 50'000U);
  ASSERT_TRUE(object_->resize({5'000}, soon()));
  EXPECT_EQ(file_size(), 5'000U);
  EXPECT_TRUE(zero(read(5'000, 60'000)));
  EXPECT_EQ(Pattern::mismatch(read(0, 5'000), 0), std::nullopt);
  write(5'000, 100, 9);  // as a mapping can, behind the end
  ASSERT_TRUE(object_->resize({60'000}, soon()));
  EXPECT_TRUE(zero(read(5'000, 55'000))) << "neither what was cut off, nor what was written behind the end";
  sync();
  EXPECT_EQ(file_size(), 60'000U);
}

TEST_F(GrowingFile, TwoWhoExtendItAtOnceLoseNothingOfEachOther) {
  // As two clients that append: each moves the end as far as it needs, and writes.
  constexpr std::uint64_t kRecord = 100;
  constexpr std::uint64_t kRecords = 4000;
  std::atomic<std::uint64_t> next{0};
  std::vector<std::thread> clients;
  for (int client = 1; client <= 2; ++client) {
    clients.emplace_back([&, client] {
      for (std::uint64_t i = next++; i < kRecords; i = next++) {
        const std::uint64_t start = kStart + i * kRecord;
        if (start + kRecord > object_->length().value) {
          EXPECT_TRUE(object_->resize({start + kRecord}, soon(), MemoryObject::Resize::grow));
        }
        write(start, kRecord, client);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  const std::vector<std::byte> bytes = read(kStart, kRecords * kRecord);
  EXPECT_EQ(std::ranges::count(bytes, std::byte{0}), 0);
  sync();
  EXPECT_EQ(file_size(), kStart + kRecords * kRecord);
}

TEST_F(GrowingFile, WritesUnderWayDoNotMakeItLongerThanItsEnd) {
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (int value = 1; !stop; ++value) {
      write(0, kMost, value);
      sync();
    }
  });
  for (int round = 0; round < 3000; ++round) {
    ASSERT_TRUE(object_->resize({kMost}, soon()));
    ASSERT_TRUE(object_->resize({4'096}, soon()));
    ASSERT_EQ(file_size(), 4'096U) << round;
  }
  stop = true;
  writer.join();
  sync();
  EXPECT_EQ(file_size(), 4'096U);
}

/// A file system of its own size, for as long as this lives.
class SmallFileSystem {
 public:
  explicit SmallFileSystem(const char* options) {
    if (::mkdtemp(path_.data()) == nullptr) return;
    mounted_ = ::mount("uffda-test", path_.c_str(), "tmpfs", 0, options) == 0;
  }
  SmallFileSystem(const SmallFileSystem&) = delete;
  SmallFileSystem& operator=(const SmallFileSystem&) = delete;
  ~SmallFileSystem() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
    ::rmdir(path_.c_str());
  }
  [[nodiscard]] bool mounted() const { return mounted_; }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_ = testing::TempDir() + "/uffda-small-XXXXXX";
  bool mounted_ = false;
};

sigjmp_buf out_of_bytes;

bool write_survives(std::byte* at) {
  struct sigaction before{};
  struct sigaction action{};
  action.sa_handler = [](int) { siglongjmp(out_of_bytes, 1); };
  ::sigaction(SIGBUS, &action, &before);
  const bool survived = sigsetjmp(out_of_bytes, 1) == 0;
  if (survived) *static_cast<volatile std::byte*>(at) = std::byte{1};
  ::sigaction(SIGBUS, &before, nullptr);
  return survived;
}

TEST(WritingBack, WhereThereIsNoSpaceTheWriteIsSigbusAndNothingIsLost) {
  if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  const SmallFileSystem small("size=12M");
  if (!small.mounted()) GTEST_SKIP() << "a file system cannot be mounted here: that needs CAP_SYS_ADMIN";
  const std::string path = small.path() + "/sparse";
  {
    std::ofstream made(path);
  }
  ASSERT_EQ(::truncate(path.c_str(), 64 << 20), 0);
  auto memory = map("file:" + path, {.access = Access::written_back});
  ASSERT_TRUE(memory) << memory.error().message();
  std::vector<std::uint64_t> written;
  std::uint64_t refused = 0;
  for (std::uint64_t at = 0; at < 64 << 20; at += 1 << 20) {
    if (write_survives(memory->writable_bytes().data() + at)) {
      written.push_back(at);
    } else {
      ++refused;
    }
  }
  EXPECT_GT(written.size(), 0U);
  EXPECT_GT(refused, 0U);
  const auto synced = memory->sync(soon());
  EXPECT_TRUE(synced) << "what was let in has space: " << synced.error().message();
  std::ifstream stored(path, std::ios::binary);
  for (const std::uint64_t at : written) {
    stored.seekg(static_cast<std::streamoff>(at));
    EXPECT_EQ(stored.get(), 1) << at;
  }
}

}  // namespace
}  // namespace uffda
