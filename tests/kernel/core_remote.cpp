// Address spaces of other processes: a child maps and registers for itself, hands its userfaultfd over, and does to its
// mappings whatever programs do.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "memtypes/builtin.h"
#include "support/mm_kernel.h"
#include "support/mm_memory_types.h"
#include "support/mm_tickets.h"

namespace uffda {
namespace {

using test::Child;
using test::client_map;
using test::ClientMemory;
using test::eventually;
using test::Note;
using test::Pattern;
using test::Served;
using test::touch;

constexpr ByteCount kObjectSize = 4_MiB;

bool all_right(const std::byte* data, std::uint64_t offset, std::uint64_t length) {
  return !Pattern::mismatch({data, length}, offset);
}

class Remote : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (const std::string refused = test::userfaultfd_refused(); !refused.empty()) GTEST_SKIP() << refused;
  }
  void TearDown() override {
    child_.reset();
    {
      const std::scoped_lock lock(mutex_);
      children_.clear();
    }
    served_.reset();
    object_.reset();
    core_.reset();
  }
  /// First the child, while there is one thread; then the core.
  void start(const std::function<int(int)>& body, std::unique_ptr<PageSource> source, const CoreOptions& options = {}) {
    child_.emplace(body);
    auto core = Core::create(options);
    ASSERT_TRUE(core);
    core_ = *core;
    ASSERT_TRUE(register_builtin_types(core_->types()));
    ASSERT_TRUE(core_->types().register_type(test::make_attributes_only_type()));
    auto object = core_->create_object(std::move(source), GetParam());
    ASSERT_TRUE(object);
    object_ = *object;
    served_ = test::serve(core_, object_, *child_);
    ASSERT_TRUE(served_);
    served_->space->on_fork([this](std::shared_ptr<AddressSpace> space) {
      auto loop = FaultLoop::start_polling(std::move(space));
      const std::scoped_lock lock(mutex_);
      ++forks_;
      if (loop) children_.push_back(std::move(*loop));
    });
    ASSERT_TRUE(test::send_note(child_->socket(), {}));
  }
  /// In the child: maps, and waits until the parent is ready.
  static std::optional<ClientMemory> ready(int socket, std::uint64_t features = 0) {
    auto memory = client_map(socket, features);
    if (memory && !test::receive_note(socket)) return std::nullopt;
    return memory;
  }
  void expect_exit(int code = 0) {
    const int status = child_->wait();
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == code) << "status " << status;
  }

  std::optional<Child> child_;
  std::shared_ptr<Core> core_;
  std::shared_ptr<MemoryObject> object_;
  std::optional<Served> served_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<FaultLoop>> children_;
  std::atomic<int> forks_{0};
};

TEST_P(Remote, AChildReadsTheSourcesBytes) {
  start(
      [](int socket) {
        const auto memory = ready(socket);
        if (!memory) return 10;
        return all_right(memory->data, 0, memory->size) ? 0 : 1;
      },
      test::pattern_source(kObjectSize));
  expect_exit();
}

TEST_P(Remote, ItsOwnWritesStayItsOwnAndGoWithDontneed) {
  start(
      [](int socket) {
        const auto memory = ready(socket);
        if (!memory) return 10;
        memory->data[5000] = std::byte{0xEE};
        memory->data[100'000] = std::byte{0xEE};
        if (memory->data[5001] != Pattern::at(5001) || memory->data[5000] != std::byte{0xEE}) return 1;
        if (::madvise(memory->data, (1_MiB).value, MADV_DONTNEED) != 0) return 11;
        return all_right(memory->data, 0, memory->size) ? 0 : 2;
      },
      test::pattern_source(kObjectSize));
  expect_exit();
  std::vector<std::byte> cached(kObjectSize.value);
  ASSERT_TRUE(object_->read({0}, cached, Deadline::after(std::chrono::seconds(30))));
  EXPECT_EQ(Pattern::mismatch(cached, 0), std::nullopt);
}

TEST_P(Remote, UnmappedPartsAreReusedAndTheRestStaysRight) {
  start(
      [](int socket) {
        const auto memory = ready(socket);
        if (!memory) return 10;
        for (std::uint64_t i = 0; i < 30; ++i) {
          std::byte* hole = memory->data + (i * 32 + 8) * kPageSize.value;
          if (::munmap(hole, 8 * kPageSize.value) != 0) return 11;
          void* other = ::mmap(hole, 8 * kPageSize.value, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
          if (other != hole) return 12;
          for (std::uint64_t k = 0; k < 8 * kPageSize.value; k += 512) {
            if (hole[k] != std::byte{0}) return 1;
          }
          if (!all_right(memory->data + i * 32 * kPageSize.value, i * 32 * kPageSize.value, 8 * kPageSize.value))
            return 2;
          if (!all_right(memory->data + (i * 32 + 16) * kPageSize.value, (i * 32 + 16) * kPageSize.value,
                         16 * kPageSize.value))
            return 3;
        }
        return 0;
      },
      test::pattern_source(kObjectSize));
  expect_exit();
}

TEST_P(Remote, MovedPartsShowTheSameBytesAtTheirNewPlace) {
  start(
      [](int socket) {
        const auto memory = ready(socket);
        if (!memory) return 10;
        if (memory->data[0] != Pattern::at(0)) return 1;
        for (std::uint64_t i = 1; i < 20; ++i) {
          std::byte* old = memory->data + i * 40 * kPageSize.value;
          void* spot = ::mmap(nullptr, 16 * kPageSize.value, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
          void* moved = ::mremap(old, 16 * kPageSize.value, 16 * kPageSize.value, MREMAP_MAYMOVE | MREMAP_FIXED, spot);
          if (moved == MAP_FAILED) return 11;
          if (!all_right(static_cast<std::byte*>(moved), i * 40 * kPageSize.value, 16 * kPageSize.value)) return 2;
          if (!all_right(old + 16 * kPageSize.value, (i * 40 + 16) * kPageSize.value, 24 * kPageSize.value)) return 3;
        }
        return 0;
      },
      test::pattern_source(kObjectSize));
  expect_exit();
}

TEST_P(Remote, ForkedChildrenReadTheSameBytes) {
  start(
      [](int socket) {
        const auto memory = ready(socket, UFFD_FEATURE_EVENT_FORK);
        if (!memory) return 10;
        if (!all_right(memory->data, 0, (1_MiB).value)) return 1;
        memory->data[3'000'000] = std::byte{0xEE};
        for (int i = 0; i < 3; ++i) {
          const pid_t grandchild = ::fork();
          if (grandchild == 0) {
            if (memory->data[3'000'000] != std::byte{0xEE}) ::_exit(1);
            ::_exit(all_right(memory->data, 0, 2'900'000) ? 0 : 2);
          }
          int status = -1;
          ::waitpid(grandchild, &status, 0);
          if (status != 0) return 20 + i;
        }
        return all_right(memory->data, 0, 2'900'000) ? 0 : 2;
      },
      test::pattern_source(kObjectSize));
  expect_exit();
  EXPECT_EQ(forks_, 3);
}

TEST_P(Remote, WithoutADescriptorForAForkEverybodyWaitsAndGoesOn) {
  start(
      [](int socket) {
        const auto memory = ready(socket, UFFD_FEATURE_EVENT_FORK);
        if (!memory || !test::receive_note(socket)) return 10;
        const pid_t grandchild = ::fork();
        if (grandchild == 0) ::_exit(all_right(memory->data, 0, (1_MiB).value) ? 0 : 2);
        int status = -1;
        ::waitpid(grandchild, &status, 0);
        if (status != 0) return 20;
        return all_right(memory->data, 0, memory->size) ? 0 : 2;
      },
      test::pattern_source(kObjectSize));
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  testing::internal::CaptureStderr();
  // No new descriptor may have a number as high as the limit: the first that is free is too high.
  const int first_free = ::dup(0);
  ::close(first_free);
  rlimit tight = before;
  tight.rlim_cur = static_cast<rlim_t>(first_free);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
  ASSERT_TRUE(test::send_note(child_->socket(), {}));
  // The event cannot be read now: the message stays pending.
  const int fd = served_->space->userfault().fd();
  pollfd polled{.fd = fd, .events = POLLIN, .revents = 0};
  EXPECT_TRUE(eventually([&] { return ::poll(&polled, 1, 0) == 1; }));
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  expect_exit();
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(forks_, 1);
}

TEST_P(Remote, AClientThatMakesItsDescriptorBlockIsServedAndLetGo) {
  start(
      [](int socket) {
        const auto memory = ready(socket);
        if (!memory) return 10;
        for (int i = 0; i < 4; ++i) {
          if (::fcntl(memory->userfaultfd, F_SETFL, 0) != 0) return 11;
          if (!all_right(memory->data + i * (1_MiB).value, i * (1_MiB).value, (1_MiB).value)) return 1;
        }
        ::fcntl(memory->userfaultfd, F_SETFL, 0);
        return 0;
      },
      test::pattern_source(kObjectSize));
  expect_exit();
  served_->loop.reset();  // and its readers can be stopped
}

TEST_P(Remote, ZeroesThatAnUnregisteredMappingLeftAreNeverShown) {
  start(
      [](int socket) {
        const auto memory = ready(socket);
        if (!memory || !test::receive_note(socket)) return 10;
        return all_right(memory->data, 0, memory->size) ? 0 : 1;
      },
      test::pattern_source(kObjectSize));
  const auto shared = object_->share();
  ASSERT_TRUE(shared);
  const auto mapping = os::map_memory(kObjectSize, PROT_READ, MAP_SHARED, shared->get());
  ASSERT_TRUE(mapping);
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < kObjectSize.value; i += kPageSize.value)
    sum += std::to_integer<std::uint64_t>(mapping->bytes()[i]);
  EXPECT_EQ(sum, 0U) << "the pages are in the kernel's cache, as zeroes";
  ASSERT_TRUE(test::send_note(child_->socket(), {}));
  expect_exit();
}

TEST_P(Remote, EvictionAndStrangersDuringFaultAroundShowNoWrongByte) {
  start(
      [](int socket) {
        const auto memory = ready(socket);
        if (!memory) return 10;
        std::atomic<int> wrong{0};
        const auto read = [&](unsigned seed) {
          std::mt19937_64 random(seed);
          for (int i = 0; i < 300; ++i) {
            // Short scans, so that the window of fault-around grows.
            const std::uint64_t start = random() % (kObjectSize.value - 64 * kPageSize.value);
            for (std::uint64_t at = start; at < start + 64 * kPageSize.value; at += 1024) {
              if (memory->data[at] != Pattern::at(at)) ++wrong;
            }
          }
        };
        read(1);
        return wrong == 0 ? 0 : 1;
      },
      test::pattern_source(kObjectSize));
  std::atomic<bool> done{false};
  const auto shared = object_->share();
  ASSERT_TRUE(shared);
  const auto stranger = os::map_memory(kObjectSize, PROT_READ, MAP_SHARED, shared->get());
  ASSERT_TRUE(stranger);
  std::thread evictor([&] {
    std::mt19937_64 random(5);
    while (!done)
      (void)object_->evict_chunk(random() % (kObjectSize.value / kPageSize.value / MemoryObject::kChunkFolios));
  });
  std::thread toucher([&] {
    std::mt19937_64 random(6);
    std::uint64_t sum = 0;
    while (!done)
      sum += std::to_integer<std::uint64_t>(
          static_cast<const volatile std::byte&>(stranger->bytes()[random() % kObjectSize.value]));
    EXPECT_GE(sum, 0U);
  });
  expect_exit();
  done = true;
  evictor.join();
  toucher.join();
  EXPECT_GT(core_->stats().folios_evicted, 0U);
  EXPECT_GT(core_->stats().folios_around, 0U);
}

TEST_P(Remote, AThreadThatWaitsWhereItsMappingIsTakenAwayIsLetGo) {
  const auto tickets = std::make_shared<test::Tickets>();
  const auto body = [](int socket) {
    const auto memory = ready(socket);
    if (!memory) return 10;
    test::install_touch_handler();
    std::optional<std::byte> seen{std::byte{1}};
    std::thread waiting([&] { seen = touch(memory->data + 8192); });
    if (!test::receive_note(socket)) return 11;
    if (::munmap(memory->data, (1_MiB).value) != 0) return 12;
    waiting.join();
    return seen ? 1 : 0;  // SIGSEGV: nothing is there
  };
#ifdef UFFDA_SANITIZED
  GTEST_SKIP() << "a forked child that starts a thread is not supported under a sanitizer";
#endif
  start(body, test::ticket_source(tickets, kObjectSize));
  ASSERT_TRUE(tickets->wait_for(1));
  const int fd = served_->space->userfault().fd();
  ASSERT_TRUE(eventually([&] { return test::waiting_faults(fd) == 1; }));
  ASSERT_TRUE(test::send_note(child_->socket(), {}));
  expect_exit();
  tickets->answer_all();
}

TEST_P(Remote, AClientThatIsKilledIsForgottenAndHarmsNobody) {
  const auto tickets = std::make_shared<test::Tickets>();
  start(
      [](int socket) {
        const auto memory = ready(socket);
        return memory ? static_cast<int>(memory->data[5 * kPageSize.value]) : 10;
      },
      test::ticket_source(tickets, kObjectSize));
  ASSERT_TRUE(tickets->wait_for(1));
  ::kill(child_->pid(), SIGKILL);
  child_->wait();
  tickets->answer_all();
  EXPECT_TRUE(eventually([&] { return served_->loop->finished(); }));
  EXPECT_FALSE(served_->space->alive());
  std::vector<std::byte> page(kPageSize.value);
  std::thread reader(
      [&] { EXPECT_TRUE(object_->read({5 * kPageSize.value}, page, Deadline::after(std::chrono::seconds(30)))); });
  reader.join();
  EXPECT_EQ(Pattern::mismatch(page, 5 * kPageSize.value), std::nullopt);
}

TEST_P(Remote, AFailedRangeIsSigbusInTheClientAndTheRestWorks) {
  constexpr std::uint64_t kBad = 77;
  testing::internal::CaptureStderr();
  start(
      [](int socket) {
        const auto memory = ready(socket);
        if (!memory) return 10;
        for (std::uint64_t i = 0; i < 200; ++i) {
          const auto byte = touch(memory->data + i * kPageSize.value);
          if (byte.has_value() != (i != kBad)) return 1;
          if (byte && *byte != Pattern::at(i * kPageSize.value)) return 2;
        }
        return 0;
      },
      test::answering_source(kObjectSize, [](FetchTicket ticket) {
        const ByteOffset bad{kBad * kPageSize.value};
        if (bad >= ticket.range().start && bad < ticket.range().end())
          return std::move(ticket).fail(Error(Errc::io, "a bad block"));
        test::answer(std::move(ticket));
      }));
  expect_exit();
  testing::internal::GetCapturedStderr();
}

/// The failure of what an address showed before says nothing about what it shows now.
TEST_P(Remote, PoisonOfWhatWasUnmappedNeverAppearsInTheMappingThatTookItsPlace) {
  constexpr std::uint64_t kBad = 6;
  const auto held = std::make_shared<test::Tickets>();
  const auto body = [](int socket) {
    const auto memory = ready(socket);
    if (!memory) return 10;
    const std::uint64_t page = kPageSize.value;
    test::install_touch_handler();
    std::thread waiting([&] { (void)touch(memory->data + kBad * page); });
    if (!test::receive_note(socket)) return 11;
    // Other folios of the same object, registered with the same userfaultfd, where somebody waits for the bad one.
    void* moved =
        ::mremap(memory->data + 100 * page, 4 * page, 4 * page, MREMAP_MAYMOVE | MREMAP_FIXED, memory->data + 4 * page);
    if (moved != memory->data + 4 * page) return 12;
    if (!test::send_note(socket, {}) || !test::receive_note(socket)) return 13;
    waiting.join();
    for (std::uint64_t i = 0; i < 4; ++i) {
      if (touch(memory->data + (4 + i) * page) != Pattern::at((100 + i) * page)) return 1;
    }
    if (touch(memory->data + 3 * page) != Pattern::at(3 * page)) return 2;
    return touch(memory->data + 8 * page) == Pattern::at(8 * page) ? 0 : 3;
  };
#ifdef UFFDA_SANITIZED
  GTEST_SKIP() << "a forked child that starts a thread is not supported under a sanitizer";
#endif
  testing::internal::CaptureStderr();
  start(body, test::answering_source(kObjectSize, [held](FetchTicket ticket) {
          const ByteRange range = ticket.range();
          const ByteOffset bad{kBad * kPageSize.value};
          if (bad >= range.start && bad < range.end()) return held->add(std::move(ticket));
          test::answer(std::move(ticket));
        }));
  ASSERT_TRUE(held->wait_for(1));
  ASSERT_TRUE(test::send_note(child_->socket(), {}));
  ASSERT_TRUE(test::receive_note(child_->socket()));
  held->fail_all(Error(Errc::io, "a bad block"));
  ASSERT_TRUE(test::send_note(child_->socket(), {}));
  expect_exit();
  testing::internal::GetCapturedStderr();
}

TEST_P(Remote, AClientThatMappedSomethingElseThanItSaidGetsSigbusAndNoLoop) {
  testing::internal::CaptureStderr();
  start(
      [](int socket) {
        const auto memory = ready(socket);
        if (!memory) return 10;
        // Anonymous memory under the same userfaultfd, told to the server as if it showed the object.
        auto* other = static_cast<std::byte*>(::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        uffdio_register request{};
        request.range = {.start = reinterpret_cast<std::uintptr_t>(other), .len = 4096};
        request.mode = UFFDIO_REGISTER_MODE_MISSING;
        if (::ioctl(memory->userfaultfd, UFFDIO_REGISTER, &request) != 0) return 11;
        if (!test::send_note(socket, {.a = request.range.start})) return 12;
        if (!test::receive_note(socket)) return 13;
        return touch(other) ? 1 : 0;
      },
      test::pattern_source(kObjectSize));
  const auto said = test::receive_note(child_->socket());
  ASSERT_TRUE(said);
  ASSERT_TRUE(served_->space->attach({said->a}, kPageSize, object_, {}));
  ASSERT_TRUE(test::send_note(child_->socket(), {}));
  expect_exit();
  testing::internal::GetCapturedStderr();
}

INSTANTIATE_TEST_SUITE_P(Types, Remote, testing::Values("shmem", test::kAttributesOnly), [](const auto& type) {
  return std::string(type.param) == "shmem" ? "shmem" : "attributes_only";
});

}  // namespace
}  // namespace uffda
