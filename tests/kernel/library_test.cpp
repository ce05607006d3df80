// The library on the real kernel: bytes equal to the source, whichever way they are touched and wherever faults are
// handled.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <setjmp.h>  // NOLINT(modernize-deprecated-headers): sigsetjmp is POSIX
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "support/huge_pages.h"
#include "support/test_support.h"
#include "uffda/uffda.h"

namespace uffda {
namespace {

using test::Pattern;
using test::pattern_source;

struct Way {
  const char* name;
  HandlerPolicy handlers;
  const char* type;
  std::uint64_t huge_pages = 0;  ///< that its mappings need
};

class Library : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (GetParam().huge_pages != 0) huge_pages_ = test::HugePages(2_MiB, GetParam().huge_pages);
    if (!huge_pages_.refused().empty()) GTEST_SKIP() << huge_pages_.refused();
    auto engine = Engine::create({.handlers = GetParam().handlers});
    if (!engine && engine.error().code() == Errc::permission_denied) GTEST_SKIP() << engine.error().message();
    ASSERT_TRUE(engine) << engine.error().message();
    engine_.emplace(std::move(*engine));
  }
  Memory map(std::uint64_t size, Access access = Access::read_only) {
    auto memory = engine_->map(pattern_source({size}), {.access = access, .type = GetParam().type});
    EXPECT_TRUE(memory) << memory.error().message();
    return std::move(*memory);
  }
  test::HugePages huge_pages_;
  std::optional<Engine> engine_;
};

TEST_P(Library, SequentialBytesAreTheSources) {
  const std::uint64_t size = 9'000'001;
  const Memory memory = map(size);
  EXPECT_EQ(Pattern::mismatch(memory.bytes(), 0), std::nullopt);
}

TEST_P(Library, RandomTouchesAreTheSources) {
  const Memory memory = map(64 << 20);
  std::mt19937_64 random(7);
  for (int i = 0; i < 20'000; ++i) {
    const std::uint64_t at = random() % memory.bytes().size();
    ASSERT_EQ(memory.bytes()[at], Pattern::at(at)) << at;
  }
}

TEST_P(Library, StridedAndBackwardTouchesAreTheSources) {
  const Memory memory = map(32 << 20);
  for (const std::uint64_t stride : {4096ULL, 3 * 4096ULL, 64 * 4096ULL + 17}) {
    for (std::uint64_t at = 0; at < memory.bytes().size(); at += stride)
      ASSERT_EQ(memory.bytes()[at], Pattern::at(at)) << at;
  }
  const Memory again = map(8 << 20);
  for (std::uint64_t at = again.bytes().size(); at-- > 0; at -= std::min<std::uint64_t>(at, 4095)) {
    ASSERT_EQ(again.bytes()[at], Pattern::at(at)) << at;
  }
}

TEST_P(Library, ManyThreadsOnTheSameAndOnDifferentPages) {
  const Memory memory = map(16 << 20);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t / 2);  // two threads each walk the same pages
      for (int i = 0; i < 8'000; ++i) {
        const std::uint64_t at = random() % memory.bytes().size();
        if (memory.bytes()[at] != Pattern::at(at)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(Library, TheLastPageEndsInZeroes) {
  const Memory memory = map(3 * 4096 + 5);
  ASSERT_EQ(memory.bytes().size(), 3U * 4096 + 5);
  const std::byte* tail = memory.bytes().data() + memory.bytes().size();
  EXPECT_TRUE(std::all_of(tail, tail + 4096 - 5, [](std::byte b) { return b == std::byte{0}; }));
  EXPECT_EQ(Pattern::mismatch(memory.bytes(), 0), std::nullopt);
}

TEST_P(Library, APrivateMappingKeepsItsWritesToItself) {
  Memory written = map(1 << 20, Access::private_);
  const std::span<std::byte> bytes = written.writable_bytes();
  bytes[5000] = std::byte{0xEE};
  bytes[100'000] = std::byte{0xEE};
  EXPECT_EQ(bytes[5001], Pattern::at(5001));
  EXPECT_EQ(bytes[5000], std::byte{0xEE});
  if (std::string_view(GetParam().type) == "anon") return;
  const auto shared = written.map_again(Access::read_only);
  ASSERT_TRUE(shared) << shared.error().message();
  EXPECT_EQ(Pattern::mismatch(shared->bytes(), 0), std::nullopt);
}

TEST_P(Library, ASystemCallThatReadsAbsentPages) {
  if (GetParam().handlers == HandlerPolicy::in_thread)
    GTEST_SKIP() << "documented: EFAULT for faults resolved in the faulting thread";
  const Memory memory = map(1 << 20);
  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  std::vector<std::byte> got(16'384);
  ASSERT_EQ(::write(fds[1], memory.bytes().data() + 300'000, got.size()), static_cast<ssize_t>(got.size()));
  ASSERT_EQ(::read(fds[0], got.data(), got.size()), static_cast<ssize_t>(got.size()));
  EXPECT_EQ(Pattern::mismatch(got, 300'000), std::nullopt);
  ::close(fds[0]);
  ::close(fds[1]);
}

TEST_P(Library, AForkedChildGetsSigsegvAndNotZeroes) {
  const Memory memory = map(1 << 20);
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGSEGV, SIG_DFL);
    const volatile std::byte touched = memory.bytes()[4096];
    ::_exit(touched == std::byte{0} ? 1 : 2);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) << status;
}

TEST_P(Library, MapsAndUnmapsWhileOthersRead) {
  const Memory steady = map(4 << 20);
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::thread reader([&] {
    std::mt19937_64 random(3);
    while (!stop) {
      const std::uint64_t at = random() % steady.bytes().size();
      if (steady.bytes()[at] != Pattern::at(at)) ++wrong;
    }
  });
  for (int i = 0; i < 50; ++i) {
    const Memory memory = map(256 << 10);
    EXPECT_EQ(Pattern::mismatch(memory.bytes(), 0), std::nullopt);
  }
  stop = true;
  reader.join();
  EXPECT_EQ(wrong, 0);
}

INSTANTIATE_TEST_SUITE_P(Ways, Library,
                         testing::Values(Way{"per_cpu_shmem", HandlerPolicy::per_cpu, "shmem"},
                                         Way{"one_shmem", HandlerPolicy::one, "shmem"},
                                         Way{"spinning_shmem", HandlerPolicy::spinning, "shmem"},
                                         Way{"in_thread_shmem", HandlerPolicy::in_thread, "shmem"},
                                         Way{"per_cpu_anon", HandlerPolicy::per_cpu, "anon"},
                                         Way{"in_thread_anon", HandlerPolicy::in_thread, "anon"},
                                         Way{"per_cpu_hugetlb", HandlerPolicy::per_cpu, "hugetlb", 40},
                                         Way{"in_thread_hugetlb", HandlerPolicy::in_thread, "hugetlb", 40}),
                         [](const auto& way) { return std::string(way.param.name); });

}  // namespace
}  // namespace uffda
