// The file of the host cache: whatever happens to it, it gives right bytes or none.
#include "sources/cache_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "contract/source_contract.h"
#include "support/test_support.h"

namespace uffda::test {
namespace {

using sources::CacheStore;
using sources::Hash128;
using sources::kCachePiece;

constexpr ByteCount kSmall = 4_MiB;  // one set

Hash128 key_of(std::uint64_t number) { return sources::hash_of(std::as_bytes(std::span(&number, 1)), 5); }

/// The piece `number`: every fourth is of zeroes, some are short.
std::vector<std::byte> piece(std::uint64_t number) {
  std::vector<std::byte> bytes(number % 7 == 3 ? 1000 + number % 5000 : kCachePiece.value);
  if (number % 4 != 0) Pattern::fill(bytes, number << 20U);
  return bytes;
}

class CacheFile : public testing::Test {
 protected:
  std::unique_ptr<CacheStore> open(ByteCount size = kSmall) {
    auto store = CacheStore::open(directory_, size);
    EXPECT_TRUE(store.has_value()) << store.error().message();
    return store ? std::move(*store) : nullptr;
  }
  void expect_refused(ByteCount size, Errc code, const std::string& words) {
    const auto store = CacheStore::open(directory_, size);
    ASSERT_FALSE(store.has_value()) << words;
    EXPECT_EQ(store.error().code(), code) << store.error().message();
    EXPECT_NE(store.error().context().find(words), std::string::npos) << store.error().context();
  }
  /// Whether the store has the piece. If it gives anything, that is right.
  static bool has(CacheStore& store, std::uint64_t number) {
    const std::vector<std::byte> right = piece(number);
    std::vector<std::byte> bytes(right.size(), std::byte{0x5A});
    if (!store.read(key_of(number), bytes)) return false;
    EXPECT_EQ(bytes, right) << "wrong bytes of piece " << number;
    return true;
  }
  static std::uint64_t count(CacheStore& store, std::uint64_t pieces) {
    std::uint64_t there = 0;
    for (std::uint64_t number = 0; number < pieces; ++number) there += has(store, number) ? 1 : 0;
    return there;
  }
  static void fill(CacheStore& store, std::uint64_t pieces) {
    for (std::uint64_t number = 0; number < pieces; ++number)
      ASSERT_TRUE(store.write(key_of(number), piece(number)).has_value());
  }
  [[nodiscard]] std::string path() const { return directory_ + "/uffda-cache"; }
  [[nodiscard]] std::uint64_t disk_use() const {
    struct stat status{};
    return ::stat(path().c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_blocks) * 512 : 0;
  }
  void overwrite(std::uint64_t offset, std::span<const std::byte> bytes) const {
    const int fd = ::open(path().c_str(), O_WRONLY | O_CLOEXEC);
    ASSERT_EQ(::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset)), static_cast<ssize_t>(bytes.size()));
    ::close(fd);
  }

  PatternFile file_{0};  // for its directory
  std::string directory_ = file_.beside("cache");
};

TEST_F(CacheFile, keeps_pieces_for_whoever_opens_it_next) {
  const auto store = open();
  ASSERT_NE(store, nullptr);
  EXPECT_FALSE(has(*store, 1));
  fill(*store, 50);
  EXPECT_EQ(count(*store, 50), 50U);
  EXPECT_FALSE(has(*store, 51));
  EXPECT_EQ(count(*open(), 50), 50U) << "while it is open";
  std::vector<std::byte> shorter(100);
  EXPECT_FALSE(store->read(key_of(1), shorter)) << "of another length";
}

TEST_F(CacheFile, takes_no_more_disk_than_it_may) {
  const auto store = open();
  ASSERT_NE(store, nullptr);
  fill(*store, 500);
  EXPECT_LE(disk_use(), kSmall.value);
  const std::uint64_t there = count(*store, 500);
  EXPECT_GT(there, 60U);
  EXPECT_LE(there, 63U);
}

TEST_F(CacheFile, keeps_what_is_read) {
  const auto store = open();
  ASSERT_NE(store, nullptr);
  fill(*store, 30);
  for (std::uint64_t number = 30; number < 400; ++number) {
    ASSERT_TRUE(store->write(key_of(number), piece(number)).has_value());
    if (number % 10 == 0) ASSERT_EQ(count(*store, 30), 30U) << number;
  }
}

TEST_F(CacheFile, refuses_what_cannot_be_meant) {
  expect_refused(1_MiB, Errc::invalid_argument, "at least 4M");
  ASSERT_NE(open(), nullptr);
  expect_refused(64_MiB, Errc::invalid_argument, "say the same, or remove it");
  std::filesystem::remove(path());
  std::ofstream(path()) << "somebody else's thesis, the only copy of it, of more than 64 bytes at that";
  expect_refused(kSmall, Errc::invalid_argument, "is no cache of uffda");
  std::filesystem::remove(path());
  std::filesystem::create_directory(path());
  EXPECT_FALSE(CacheStore::open(directory_, kSmall).has_value());
  std::filesystem::remove(path());
  std::filesystem::create_symlink("/etc/passwd", path());
  EXPECT_FALSE(CacheStore::open(directory_, kSmall).has_value());
  directory_ = file_.beside("no/such/directory");
  EXPECT_FALSE(CacheStore::open(directory_, kSmall).has_value());
}

TEST_F(CacheFile, of_another_version_or_damaged_begins_anew) {
  const std::byte other[] = {std::byte{9}};
  for (const std::uint64_t offset : {16U, 24U, 32U, 47U}) {
    const auto store = open();
    ASSERT_NE(store, nullptr);
    fill(*store, 10);
    overwrite(offset, other);
    const auto fresh = open();
    ASSERT_NE(fresh, nullptr);
    EXPECT_EQ(count(*fresh, 10), 0U);
    fill(*fresh, 10);
    EXPECT_EQ(count(*fresh, 10), 10U);
    EXPECT_EQ(count(*store, 10), 10U) << "who has the old one open keeps it";
  }
}

TEST_F(CacheFile, that_was_cut_gives_what_is_left_of_it) {
  for (const std::uint64_t length : {0U, 10U, 63U, 4096U, 5000U, 8192U, 100000U, 1000000U}) {
    {
      const auto store = open();
      ASSERT_NE(store, nullptr);
      fill(*store, 50);
      std::filesystem::resize_file(path(), length);
      EXPECT_LT(count(*store, 50), 50U);
    }
    const auto store = open();
    ASSERT_NE(store, nullptr);
    EXPECT_LT(count(*store, 50), 50U) << length;
    fill(*store, 50);
    EXPECT_EQ(count(*store, 50), 50U);
  }
}

TEST_F(CacheFile, never_gives_wrong_bytes_however_it_is_damaged) {
  std::mt19937_64 random(19);
  for (int round = 0; round < 30; ++round) {
    const auto store = open();
    ASSERT_NE(store, nullptr);
    fill(*store, 40);
    for (int i = 0; i < 200; ++i) {
      // Descriptions and slots; the header has a test of its own.
      const std::uint64_t offset = 4096 + (random() % 2 == 0 ? random() % 4096 : random() % (40 * kCachePiece.value));
      std::vector<std::byte> junk(1 + random() % 40);
      for (std::byte& byte : junk) byte = static_cast<std::byte>(random() % 3 == 0 ? 0 : random());
      overwrite(offset, junk);
    }
    (void)count(*store, 60);
    for (std::uint64_t number = 0; number < 80; ++number) {
      if (has(*store, number % 20)) continue;
      ASSERT_TRUE(store->write(key_of(number % 20), piece(number % 20)).has_value());
    }
    EXPECT_EQ(count(*store, 20), 20U) << "and it goes on working";
  }
}

TEST_F(CacheFile, exchanged_descriptions_are_not_believed) {
  const auto store = open();
  ASSERT_NE(store, nullptr);
  fill(*store, 6);
  const int fd = ::open(path().c_str(), O_RDWR | O_CLOEXEC);
  sources::CacheSet set{};
  ASSERT_EQ(::pread(fd, &set, sizeof set, 4096), static_cast<ssize_t>(sizeof set));
  std::swap(set.entries[1].key, set.entries[2].key);
  ASSERT_EQ(::pwrite(fd, &set, sizeof set, 4096), static_cast<ssize_t>(sizeof set));
  ::close(fd);
  EXPECT_EQ(count(*store, 6), 4U);
}

/// Runs `work` in a child process, which says "1" before each of its steps to whoever reads the pipe.
class Child {
 public:
  explicit Child(const std::function<void(const std::function<void()>&)>& work) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(ends[0]);
      work([&] { (void)!::write(ends[1], "1", 1); });
      ::_exit(testing::Test::HasFailure() ? 1 : 0);
    }
    ::close(ends[1]);
    steps_.reset(ends[0]);
  }
  /// Waits until it has begun that many more steps. False: it has ended.
  bool wait_for_steps(unsigned count) const {
    char step = 0;
    while (count-- > 0) {
      if (::read(steps_.get(), &step, 1) != 1) return false;
    }
    return true;
  }
  int end(int signal = 0) const {
    if (signal != 0) ::kill(pid_, signal);
    while (wait_for_steps(1000)) {
    }
    int status = 0;
    ::waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  os::UniqueFd steps_;
};

TEST_F(CacheFile, is_shared_by_processes_within_its_bound) {
  constexpr std::uint64_t kPieces = 150;
  const auto work = [&](unsigned seed) {
    return [this, seed](const std::function<void()>&) {
      std::mt19937_64 random(seed);
      const auto store = open();
      ASSERT_NE(store, nullptr);
      for (int i = 0; i < 1500; ++i) {
        const std::uint64_t number = random() % kPieces;
        if (has(*store, number)) continue;
        ASSERT_TRUE(store->write(key_of(number), piece(number)).has_value());
      }
    };
  };
  const Child children[] = {Child(work(1)), Child(work(2)), Child(work(3))};
  for (const Child& child : children) EXPECT_EQ(child.end(), 0);
  EXPECT_LE(disk_use(), kSmall.value);
  EXPECT_GT(count(*open(), kPieces), 55U);
}

TEST_F(CacheFile, is_sound_after_any_kill) {
  std::mt19937_64 random(23);
  constexpr std::uint64_t kPieces = 100;
  for (int round = 0; round < 60; ++round) {
    const Child child([&](const std::function<void()>& step) {
      const auto store = open();
      for (std::uint64_t i = 0;; ++i) {
        step();
        const std::uint64_t number = (i * 37 + static_cast<std::uint64_t>(round)) % kPieces;
        (void)store->write(key_of(number), piece(number));
      }
    });
    ASSERT_TRUE(child.wait_for_steps(static_cast<unsigned>(1 + random() % 100)));
    EXPECT_EQ(child.end(SIGKILL), 128 + SIGKILL);
    const auto store = open();
    ASSERT_NE(store, nullptr);
    (void)count(*store, kPieces);
    ASSERT_TRUE(store->write(key_of(7), piece(7)).has_value()) << "no lock is left behind";
    EXPECT_TRUE(has(*store, 7));
  }
  EXPECT_LE(disk_use(), kSmall.value);
}

TEST_F(CacheFile, is_made_once_by_whoever_comes_first) {
  const auto work = [&](const std::function<void()>&) {
    const auto store = open();
    ASSERT_NE(store, nullptr);
    ASSERT_TRUE(store->write(key_of(static_cast<std::uint64_t>(::getpid())), piece(1)).has_value());
  };
  for (int round = 0; round < 20; ++round) {
    std::filesystem::remove_all(directory_);
    const Child children[] = {Child(work), Child(work), Child(work), Child(work)};
    for (const Child& child : children) EXPECT_EQ(child.end(), 0);
    std::size_t files = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory_)) ++files;
    EXPECT_EQ(files, 1U) << "nothing is left beside it";
  }
}

}  // namespace
}  // namespace uffda::test
