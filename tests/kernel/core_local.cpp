// The core on the real userfaultfd, in one process: every memory type, failing and silent sources, memory below a
// limit.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <latch>
#include <random>
#include <thread>
#include <vector>

#include "memtypes/builtin.h"
#include "support/mm_kernel.h"
#include "support/mm_memory_types.h"
#include "support/mm_tickets.h"
#include "uffda/uffda.h"

namespace uffda {
namespace {

using test::LocalMemory;
using test::Pattern;
using test::touch;

#ifdef UFFDA_SANITIZED
constexpr std::uint64_t kScale = 4;  // everything is slower there
#else
constexpr std::uint64_t kScale = 1;
#endif

class Local : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  }
  void TearDown() override {
    memory_.reset();
    object_.reset();
    core_.reset();
  }
  void map(std::unique_ptr<PageSource> source, const CoreOptions& options = {}) {
    auto core = Core::create(options);
    ASSERT_TRUE(core);
    core_ = *core;
    ASSERT_TRUE(register_builtin_types(core_->types()));
    ASSERT_TRUE(core_->types().register_type(test::make_attributes_only_type()));
    auto object = core_->create_object(std::move(source), GetParam());
    ASSERT_TRUE(object) << object.error().message();
    object_ = *object;
    memory_ = LocalMemory::create(core_, object_);
    ASSERT_NE(memory_, nullptr);
  }
  const std::byte* at(std::uint64_t offset) const { return memory_->data() + offset; }
  std::span<const std::byte> bytes() const { return {memory_->data(), object_->size().value}; }

  std::shared_ptr<Core> core_;
  std::shared_ptr<MemoryObject> object_;
  std::unique_ptr<LocalMemory> memory_;
};

TEST_P(Local, BytesAreTheSources) {
  map(test::pattern_source({5'000'003}));
  EXPECT_EQ(Pattern::mismatch(bytes(), 0), std::nullopt);
}

TEST_P(Local, ThreadsOnTheSameAndOnOtherPages) {
  map(test::pattern_source(16_MiB));
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t / 2);
      for (int i = 0; i < 3'000; ++i) {
        const std::uint64_t offset = random() % (16_MiB).value;
        if (*at(offset) != Pattern::at(offset)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(Local, SigbusAtExactlyTheFailedFoliosAndTheRestWorks) {
  constexpr std::uint64_t kPages = 400;
  const auto bad = [](std::uint64_t i) { return i == 0 || i == 100 || i == 101 || i == 250 || i == kPages - 1; };
  testing::internal::CaptureStderr();
  map(test::answering_source(kPageSize * kPages, [&](FetchTicket ticket) {
    const ByteRange range = ticket.range();
    for (std::uint64_t i = range.start.value / kPageSize.value; i * kPageSize.value < range.end().value; ++i) {
      if (bad(i)) return std::move(ticket).fail(Error(Errc::io, "a bad block"));
    }
    test::answer(std::move(ticket));
  }));
  for (std::uint64_t i = 0; i < kPages; ++i) {
    const auto byte = touch(at(i * kPageSize.value + 9));
    EXPECT_EQ(byte.has_value(), !bad(i)) << i;
    EXPECT_TRUE(!byte || *byte == Pattern::at(i * kPageSize.value + 9)) << i;
  }
  EXPECT_EQ(touch(at(100 * kPageSize.value)), std::nullopt) << "and again";
  testing::internal::GetCapturedStderr();
}

TEST_P(Local, ASourceThatNeverAnswersIsSigbusAtTheDeadline) {
  const auto tickets = std::make_shared<test::Tickets>();
  testing::internal::CaptureStderr();
  map(test::ticket_source(tickets, 1_MiB),
      {.warn_after = std::chrono::milliseconds(50), .deadline = std::chrono::milliseconds(500)});
  EXPECT_EQ(touch(at(40'000)), std::nullopt);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("no answer"), std::string::npos) << said;
  std::atomic<bool> done{false};
  std::thread answering([&] {
    while (!done) {
      tickets->answer_all();
      std::this_thread::yield();
    }
  });
  EXPECT_EQ(touch(at(400'000)), Pattern::at(400'000)) << "the rest is served when it answers again";
  done = true;
  answering.join();
}

TEST_P(Local, NobodySeesAPageThatIsHalfFilled) {
  constexpr std::uint64_t kPages = 150;
  constexpr unsigned kReaders = 4;
  const auto tickets = std::make_shared<test::Tickets>();
  map(test::ticket_source(tickets, kPageSize * kPages));
  std::atomic<bool> done{false};
  std::thread answering([&] {
    while (!done) {
      tickets->answer_all();
      std::this_thread::yield();
    }
  });
  std::atomic<int> wrong{0};
  std::vector<std::thread> readers;
  for (unsigned t = 0; t < kReaders; ++t) {
    readers.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < kPages; ++i) {
        // From the end that is written last, so that a page that is shown too early is seen.
        const std::uint64_t start = i * kPageSize.value;
        for (std::uint64_t k = kPageSize.value; k > 0; k -= t % 2 == 0 ? 64 : 512) {
          if (*at(start + k - 1) != Pattern::at(start + k - 1)) ++wrong;
        }
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  done = true;
  answering.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(Local, ASmallLimitHoldsWhileMuchIsScanned) {
  if (std::string_view(GetParam()) == "anon")
    GTEST_SKIP() << "anonymous pages are the process's own: nothing of them is cached";
  const ByteCount limit = 8_MiB;
  const std::uint64_t size = (256_MiB).value / kScale;
  map(test::pattern_source({size}), {.budget = limit});
  std::atomic<int> wrong{0};
  std::atomic<bool> done{false};
  std::uint64_t most = 0;
  std::thread sampler([&] {
    while (!done) {
      most = std::max(most, core_->resident().value);
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      const auto check = [&](std::uint64_t offset) {
        if (*at(offset) != Pattern::at(offset)) ++wrong;
      };
      if (t < 2) {
        for (int pass = 0; pass < 2; ++pass) {
          for (std::uint64_t offset = t * 11; offset < size; offset += kPageSize.value) check(offset);
        }
      } else {
        for (std::uint64_t i = 0; i < 6'000 / kScale; ++i) check(random() % size);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  done = true;
  sampler.join();
  EXPECT_EQ(wrong, 0);
  // Each fault handler may be publishing one request beyond it.
  EXPECT_LE(most, limit.value);
  EXPECT_GT(core_->stats().folios_evicted, size / kPageSize.value / 2);
}

TEST_P(Local, PoisonThatIsLiftedIsGoneFromThePageTableToo) {
  const auto tickets = std::make_shared<test::Tickets>();
  testing::internal::CaptureStderr();
  map(test::ticket_source(tickets, 1_MiB));
  std::thread toucher([&] { EXPECT_EQ(touch(at(8192)), std::nullopt); });
  ASSERT_TRUE(tickets->wait_for(1));
  tickets->fail_all(Error(Errc::io));
  toucher.join();
  EXPECT_EQ(touch(at(8192)), std::nullopt);
  ASSERT_TRUE(object_->invalidate({.start = {0}, .length = 1_MiB}));
  ASSERT_TRUE(tickets->wait_for(2));
  tickets->answer_all();
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(touch(at(8192)), Pattern::at(8192));
}

INSTANTIATE_TEST_SUITE_P(Types, Local, testing::Values("shmem", "anon", test::kAttributesOnly), [](const auto& type) {
  std::string name = type.param;
  std::ranges::replace(name, '-', '_');
  return name;
});

TEST(Shrinking, AFileThatShrinksIsSigbusAndNeverZeroes) {
  if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  char path[] = "/tmp/uffda-shrink-XXXXXX";
  const os::UniqueFd file(::mkstemp(path));
  ASSERT_TRUE(file);
  std::vector<std::byte> contents(1 << 20);
  Pattern::fill(contents, 0);
  ASSERT_TRUE(os::write_at(file.get(), {0}, contents));
  {
    auto engine = Engine::create();
    ASSERT_TRUE(engine);
    auto memory = engine->map(std::string("file:") + path);
    ASSERT_TRUE(memory) << memory.error().message();
    EXPECT_EQ(touch(&memory->bytes()[1000]), Pattern::at(1000));
    ASSERT_EQ(::ftruncate(file.get(), 600'000), 0);
    testing::internal::CaptureStderr();
    EXPECT_EQ(touch(&memory->bytes()[900'000]), std::nullopt);
    EXPECT_EQ(touch(&memory->bytes()[600'001]), std::nullopt) << "the page that it cuts";
    EXPECT_EQ(touch(&memory->bytes()[500'000]), Pattern::at(500'000));
    EXPECT_EQ(touch(&memory->bytes()[1000]), Pattern::at(1000));
    testing::internal::GetCapturedStderr();
  }
  ::unlink(path);
}

// --- faults in the faulting thread: the signal
// ------------------------------------------------------------------------

/// Runs in a child, because it is about signals that kill.
int status_of(const std::function<int()>& body) {
  test::Child child([&](int) { return body(); });
  return child.wait();
}

std::atomic<int> heard{0};
void count_sigbus(int) { ++heard; }

TEST(InlineSignals, ASigbusThatWasSentGoesToWhoeverWasThereBefore) {
  if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  const auto with = [](void (*before)(int)) {
    return status_of([before] {
      ::signal(SIGBUS, before);
      auto engine = Engine::create({.handlers = HandlerPolicy::in_thread});
      if (!engine) return 10;
      auto memory = engine->map(test::pattern_source(1_MiB));
      if (!memory || memory->bytes()[5000] != Pattern::at(5000)) return 11;
      ::raise(SIGBUS);
      // Whoever survives that has an engine that works.
      return memory->bytes()[50'000] == Pattern::at(50'000) ? heard.load() : 12;
    });
  };
  int status = with(SIG_DFL);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) << status;
  status = with(SIG_IGN);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  status = with(count_sigbus);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status;
}

/// A file that is shorter than its mapping: touching it is a SIGBUS that is none of ours, until it grows.
int short_file = -1;
const std::byte* absent_page = nullptr;
void touch_ours(int) {
  if (*static_cast<const volatile std::byte*>(absent_page) == Pattern::at(50'000)) ++heard;
  if (short_file >= 0 && ::ftruncate(short_file, static_cast<off_t>(kPageSize.value)) != 0) ::_exit(30);
}

TEST(InlineSignals, AHandlerOfTheProgramMayTouchAbsentPagesOfOurs) {
  if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  const auto with = [](bool sent) {
    return status_of([sent] {
      ::signal(SIGBUS, touch_ours);  // the engine's handler passes on to it, and is interrupted by its fault
      auto engine = Engine::create({.handlers = HandlerPolicy::in_thread});
      if (!engine) return 10;
      auto memory = engine->map(test::pattern_source(1_MiB));
      if (!memory) return 11;
      absent_page = &memory->bytes()[50'000];
      if (sent) {
        ::raise(SIGBUS);
      } else {
        short_file = ::memfd_create("short", 0);
        void* at = ::mmap(nullptr, kPageSize.value, PROT_READ, MAP_SHARED, short_file, 0);
        if (at == MAP_FAILED || *static_cast<const volatile std::byte*>(at) != std::byte{0}) return 12;
      }
      return memory->bytes()[90'000] == Pattern::at(90'000) ? heard.load() : 13;
    });
  };
  for (const bool sent : {true, false}) {
    const int status = with(sent);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status << (sent ? " sent" : " by a fault");
  }
}

TEST(InlineSignals, ABytesThatCannotBeHadKillsWithSigbus) {
  if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  const int status = status_of([] {
    ::signal(SIGBUS, SIG_DFL);
    auto engine = Engine::create({.handlers = HandlerPolicy::in_thread});
    if (!engine) return 10;
    auto memory =
        engine->map(test::answering_source(1_MiB, [](FetchTicket ticket) { std::move(ticket).fail(Error(Errc::io)); }));
    if (!memory) return 11;
    return static_cast<int>(memory->bytes()[5000]) + 20;
  });
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) << status;
}

TEST(InlineSignals, AnEngineMayEndWhileAnotherHandlesFaults) {
  if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  auto steady = Engine::create({.handlers = HandlerPolicy::in_thread});
  ASSERT_TRUE(steady);
  std::atomic<bool> done{false};
  std::atomic<int> wrong{0};
  std::thread reader([&] {
    while (!done) {
      const auto memory = steady->map(test::pattern_source(256_KiB));
      for (std::uint64_t i = 0; memory && i < (256_KiB).value; i += kPageSize.value) {
        if (memory->bytes()[i] != Pattern::at(i)) ++wrong;
      }
    }
  });
  for (int i = 0; i < 30; ++i) {
    auto engine = Engine::create({.handlers = HandlerPolicy::in_thread});
    ASSERT_TRUE(engine);
    const auto memory = engine->map(test::pattern_source(64_KiB));
    ASSERT_TRUE(memory);
    EXPECT_EQ(memory->bytes()[100], Pattern::at(100));
  }
  done = true;
  reader.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace uffda
