// While one reader can serve all faults from its own CPU, the others stand by; nothing is lost when that changes.
#include <gtest/gtest.h>

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "os/threads.h"
#include "support/kernel_threads.h"
#include "support/test_support.h"
#include "uffda/uffda.h"

namespace uffda::test {
namespace {

constexpr std::uint64_t kPages = 8192;

std::vector<int> usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

void move_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  ASSERT_EQ(::sched_setaffinity(0, sizeof set, &set), 0);
}

/// Runs before everything that other people run: a reader that loses its CPU to them loses its faults to another
/// reader.
bool goes_first(int thread) {
  const sched_param first{.sched_priority = 1};
  return ::sched_setscheduler(thread, SCHED_FIFO, &first) == 0;
}

/// Cached memory.
class SoloReaders : public testing::Test {
 protected:
  static constexpr std::uint64_t kRound = 512;  // faults

  void SetUp() override {
    cpus_ = usable_cpus();
    if (cpus_.size() < 2) GTEST_SKIP() << "needs two CPUs";
    const std::set<int> before = threads();
    auto engine = Engine::create({});
    ASSERT_TRUE(engine.has_value()) << engine.error().message();
    engine_.emplace(std::move(*engine));
    auto memory = engine_->map(pattern_source(kPageSize * kPages));
    ASSERT_TRUE(memory.has_value()) << memory.error().message();
    ASSERT_TRUE(memory->populate({{0}, kPageSize * kPages}, Deadline::after(std::chrono::minutes(1))));
    memory_.emplace(std::move(*memory));
    readers_ = threads();
    for (const int thread : before) readers_.erase(thread);
    for (const int thread : readers_) {
      if (!goes_first(thread)) GTEST_SKIP() << "needs CAP_SYS_NICE";
    }
  }

  /// One byte of some pages, in an order in which none is near those before it: each is a fault.
  static void touch(const Memory& memory, std::uint64_t first, std::uint64_t pages) {
    const std::uint64_t all = memory.bytes().size() / kPageSize.value;
    for (std::uint64_t i = first; i < first + pages; ++i) {
      const std::uint64_t at = i * 1021 % all * kPageSize.value + 11;
      ASSERT_EQ(memory.bytes()[at], Pattern::at(at)) << at;
    }
  }

  /// The readers that slept for at least every other fault of a round.
  std::set<int> readers_that_woke() {
    // Unmapped, and still cached.
    const std::span<const std::byte> bytes = memory_->bytes();
    EXPECT_EQ(::madvise(const_cast<std::byte*>(bytes.data()), bytes.size(), MADV_DONTNEED), 0);
    const auto before = sleeps(readers_);
    touch(*memory_, 0, kRound);
    std::set<int> woke;
    for (const auto& [thread, count] : sleeps(readers_)) {
      if (count - before.at(thread) > kRound / 2) woke.insert(thread);
    }
    return woke;
  }

  /// The one that reads alone, once one does.
  std::optional<int> soloist() {
    constexpr int kRounds = 200;
    for (int round = 0; round < kRounds; ++round) {
      const std::set<int> woke = readers_that_woke();
      if (woke.size() == 1) return *woke.begin();
    }
    return std::nullopt;
  }

  std::vector<int> cpus_;
  std::optional<Engine> engine_;
  std::optional<Memory> memory_;
  std::set<int> readers_;
};

TEST_F(SoloReaders, OneServesAThreadThatStaysAndFollowsOneThatMoves) {
  std::thread([&] {
    EXPECT_TRUE(goes_first(0));
    move_to(cpus_[0]);
    const auto here = soloist();
    ASSERT_TRUE(here.has_value()) << "every reader is woken by every fault";
    EXPECT_EQ(os::cpu_of_thread(static_cast<std::uint32_t>(*here)), cpus_[0]);
    move_to(cpus_[1]);
    for (int round = 0; round < 4; ++round) readers_that_woke();  // it has to notice
    const auto there = soloist();
    ASSERT_TRUE(there.has_value());
    EXPECT_EQ(os::cpu_of_thread(static_cast<std::uint32_t>(*there)), cpus_[1]);
  }).join();
}

TEST_F(SoloReaders, ThreadsOnAllCpusAreServedWhileReadersComeAndGo) {
  std::vector<std::thread> touchers;
  for (std::uint64_t i = 0; i < 4; ++i) {
    touchers.emplace_back([&, i] {
      for (std::uint64_t part = 0; part < 4; ++part) {
        move_to(cpus_[(i + part) % cpus_.size()]);
        touch(*memory_, (i * 4 + part) * 512, 512);
      }
    });
  }
  for (std::thread& toucher : touchers) toucher.join();
}

TEST_F(SoloReaders, AnEngineEndsWhateverItsReadersAreDoing) {
  for (std::uint64_t faults = 240; faults < 340; faults += 10) {
    auto engine = Engine::create({});
    ASSERT_TRUE(engine.has_value());
    auto memory = engine->map(pattern_source(kPageSize * kPages));
    ASSERT_TRUE(memory.has_value());
    ASSERT_TRUE(memory->populate({{0}, kPageSize * kPages}, Deadline::after(std::chrono::minutes(1))));
    std::thread([&] {
      move_to(cpus_[0]);
      touch(*memory, 0, faults);
    }).join();
  }
}

TEST(ThreadsOfTheKernel, TheCpuOfAThreadIsKnown) {
  const std::vector<int> cpus = usable_cpus();
  std::thread([&] {
    move_to(cpus.back());
    EXPECT_EQ(os::cpu_of_thread(os::this_thread_id()), cpus.back());
  }).join();
  EXPECT_EQ(os::cpu_of_thread(0x7fffffff), -1);
}

}  // namespace
}  // namespace uffda::test
