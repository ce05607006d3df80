// Clients that map an export by the handoff protocol: bytes equal to the source, whatever they do to their mappings.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <random>
#include <thread>
#include <vector>

#include "support/handoff_support.h"
#include "support/test_support.h"

namespace uffda::test {
namespace {

constexpr std::uint64_t kSize = (8U << 20U) + 1234;  // a last page of 1234 bytes
constexpr std::uint64_t kPage = 4096;

/// Every test runs with room for everything, and with so little that eviction never rests.
class ServerMapping : public testing::TestWithParam<ByteCount> {
 protected:
  void SetUp() override {
    if (!userfaultfd_works()) GTEST_SKIP() << "userfaultfd is not permitted here: needs CAP_SYS_PTRACE";
    write_pattern_file(directory_.path("disk"), {kSize});
    ServeOptions options;
    options.exports = {{"disk", "file:" + directory_.path("disk")}};
    options.budget = GetParam();
    server_.emplace(directory_, options);
    ASSERT_TRUE(server_->ready());
  }
  /// Runs `body` in a process that has attached; its exit status.
  int in_client(const std::function<int(Attached&)>& body, std::uint64_t features = usual_features()) {
    ForkedProcess client([&] {
      auto attached = attach_to(server_->socket(), features);
      UFFDA_CLIENT_CHECK(attached);
      return body(*attached);
    });
    return client.wait();
  }

  TempDir directory_;
  std::optional<TestServer> server_;
};

bool matches(std::span<const std::byte> bytes, std::uint64_t offset) { return !Pattern::mismatch(bytes, offset); }

std::span<const std::byte> object_bytes(const os::MappedMemory& memory) {
  return std::span<const std::byte>(memory.bytes()).first(kSize);
}

bool page_matches(const os::MappedMemory& memory, std::uint64_t page) {
  const auto bytes = object_bytes(memory);
  const std::uint64_t offset = page * kPage;
  return matches(bytes.subspan(offset, std::min(kPage, bytes.size() - offset)), offset);
}

TEST_P(ServerMapping, ReadFromStartToEnd) {
  EXPECT_EQ(in_client([](Attached& attached) {
              auto memory = map_export(attached, "disk");
              UFFDA_CLIENT_CHECK(memory);
              UFFDA_CLIENT_CHECK(matches(object_bytes(*memory), 0));
              return 0;
            }),
            0);
}

TEST_P(ServerMapping, ReadAtRandom) {
  EXPECT_EQ(in_client([](Attached& attached) {
              auto memory = map_export(attached, "disk");
              UFFDA_CLIENT_CHECK(memory);
              std::mt19937_64 random(7);
              for (int i = 0; i < 4000; ++i) UFFDA_CLIENT_CHECK(page_matches(*memory, random() % (kSize / kPage + 1)));
              return 0;
            }),
            0);
}

TEST_P(ServerMapping, ReadWithAStrideBackwards) {
  EXPECT_EQ(in_client([](Attached& attached) {
              auto memory = map_export(attached, "disk");
              UFFDA_CLIENT_CHECK(memory);
              for (std::uint64_t page = kSize / kPage; page >= 3; page -= 3)
                UFFDA_CLIENT_CHECK(page_matches(*memory, page));
              return 0;
            }),
            0);
}

TEST_P(ServerMapping, ManyThreadsOnTheSameAndOnDifferentPages) {
  EXPECT_EQ(in_client([](Attached& attached) {
              auto memory = map_export(attached, "disk");
              UFFDA_CLIENT_CHECK(memory);
              std::atomic<int> wrong{0};
              std::vector<std::thread> threads;
              for (unsigned seed = 0; seed < 8; ++seed) {
                threads.emplace_back([&, seed] {
                  std::mt19937_64 random(seed / 2);  // two by two they walk together
                  for (int i = 0; i < 1500; ++i) wrong += page_matches(*memory, random() % (kSize / kPage + 1)) ? 0 : 1;
                });
              }
              for (std::thread& thread : threads) thread.join();
              UFFDA_CLIENT_CHECK(wrong == 0);
              return 0;
            }),
            0);
}

TEST_P(ServerMapping, APartFromTheMiddleOfTheObject) {
  EXPECT_EQ(in_client([](Attached& attached) {
              auto memory = map_export(attached, "disk", {.offset = {kPage * 100}, .length = {kPage * 37}});
              UFFDA_CLIENT_CHECK(memory);
              UFFDA_CLIENT_CHECK(matches(memory->bytes(), kPage * 100));
              return 0;
            }),
            0);
}

TEST_P(ServerMapping, SystemCallsReadAbsentPages) {
  EXPECT_EQ(in_client([](Attached& attached) {
              auto memory = map_export(attached, "disk");
              UFFDA_CLIENT_CHECK(memory);
              const int file = ::memfd_create("copy", MFD_CLOEXEC);
              std::vector<std::byte> copy(kPage * 64);
              UFFDA_CLIENT_CHECK(::write(file, memory->bytes().data() + 100, copy.size()) ==
                                 static_cast<ssize_t>(copy.size()));
              UFFDA_CLIENT_CHECK(::pread(file, copy.data(), copy.size(), 0) == static_cast<ssize_t>(copy.size()));
              UFFDA_CLIENT_CHECK(matches(copy, 100));
              ::close(file);
              return 0;
            }),
            0);
}

TEST_P(ServerMapping, UnmappingAPartLeavesTheRest) {
  EXPECT_EQ(in_client([](Attached& attached) {
              auto memory = map_export(attached, "disk");
              UFFDA_CLIENT_CHECK(memory);
              UFFDA_CLIENT_CHECK(::munmap(memory->bytes().data() + kPage * 300, kPage * 200) == 0);
              const auto bytes = object_bytes(*memory);
              UFFDA_CLIENT_CHECK(matches(bytes.first(kPage * 300), 0));
              UFFDA_CLIENT_CHECK(matches(bytes.subspan(kPage * 500), kPage * 500));
              return 0;
            }),
            0);
}

TEST_P(ServerMapping, AnotherMappingInTheHoleShowsWhatItShould) {
  EXPECT_EQ(in_client([](Attached& attached) {
              auto memory = map_export(attached, "disk");
              UFFDA_CLIENT_CHECK(memory);
              std::byte* hole = memory->bytes().data() + kPage * 10;
              UFFDA_CLIENT_CHECK(::munmap(hole, kPage * 5) == 0);
              void* plain = ::mmap(hole, kPage * 5, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
              UFFDA_CLIENT_CHECK(plain == hole);
              for (std::uint64_t i = 0; i < kPage * 5; ++i) UFFDA_CLIENT_CHECK(hole[i] == std::byte{0});
              UFFDA_CLIENT_CHECK(page_matches(*memory, 9) && page_matches(*memory, 15));
              return 0;
            }),
            0);
}

TEST_P(ServerMapping, MovedMappingsShowTheSameBytes) {
  EXPECT_EQ(in_client([](Attached& attached) {
              auto memory = map_export(attached, "disk");
              UFFDA_CLIENT_CHECK(memory);
              UFFDA_CLIENT_CHECK(page_matches(*memory, 500));  // one page goes along that is mapped already
              const std::size_t length = kPage * 64;
              std::byte* old = memory->bytes().data() + kPage * 480;
              void* place = ::mmap(nullptr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
              void* moved = ::mremap(old, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, place);
              UFFDA_CLIENT_CHECK(moved == place);
              UFFDA_CLIENT_CHECK(matches({static_cast<std::byte*>(moved), length}, kPage * 480));
              UFFDA_CLIENT_CHECK(page_matches(*memory, 479) && page_matches(*memory, 544));
              return 0;
            }),
            0);
}

TEST_P(ServerMapping, AShrunkMappingKeepsItsStart) {
  EXPECT_EQ(in_client([](Attached& attached) {
              auto memory = map_export(attached, "disk");
              UFFDA_CLIENT_CHECK(memory);
              UFFDA_CLIENT_CHECK(::mremap(memory->bytes().data(), memory->bytes().size(), kPage * 50, 0) ==
                                 memory->bytes().data());
              UFFDA_CLIENT_CHECK(matches(object_bytes(*memory).first(kPage * 50), 0));
              return 0;
            }),
            0);
}

TEST_P(ServerMapping, DontneedForgetsPrivateWritesAndShowsTheObjectAgain) {
  EXPECT_EQ(in_client([](Attached& attached) {
              auto memory = map_export(attached, "disk", {.protection = PROT_READ | PROT_WRITE});
              UFFDA_CLIENT_CHECK(memory);
              std::byte* data = memory->bytes().data();
              for (std::uint64_t page = 0; page < 64; page += 2) data[page * kPage] = std::byte{0xAB};
              UFFDA_CLIENT_CHECK(data[0] == std::byte{0xAB} && page_matches(*memory, 1));
              UFFDA_CLIENT_CHECK(::madvise(data, kPage * 128, MADV_DONTNEED) == 0);
              UFFDA_CLIENT_CHECK(matches(object_bytes(*memory), 0));
              return 0;
            }),
            0);
}

TEST_P(ServerMapping, PrivateWritesStayPrivate) {
  const Gate written;
  const Gate seen;
  ForkedProcess writer([&] {
    auto attached = attach_to(server_->socket(), usual_features());
    UFFDA_CLIENT_CHECK(attached);
    auto memory = map_export(*attached, "disk", {.protection = PROT_READ | PROT_WRITE});
    UFFDA_CLIENT_CHECK(memory);
    std::byte* data = memory->bytes().data();
    for (std::uint64_t page = 0; page < 64; ++page) data[page * kPage + 8] = std::byte{0x5A};
    written.open();
    seen.wait();
    for (std::uint64_t page = 0; page < 64; ++page) UFFDA_CLIENT_CHECK(data[page * kPage + 8] == std::byte{0x5A});
    return 0;
  });
  written.wait();
  EXPECT_EQ(in_client([](Attached& attached) {
              auto memory = map_export(attached, "disk");
              UFFDA_CLIENT_CHECK(memory && matches(object_bytes(*memory), 0));
              return 0;
            }),
            0);
  seen.open();
  EXPECT_EQ(writer.wait(), 0);
}

TEST_P(ServerMapping, TheLastPageEndsInZeroesAndBeyondItIsSigbus) {
  const int status = in_client([](Attached& attached) {
    auto memory = map_export(attached, "disk", {.extra = {kPage}});
    UFFDA_CLIENT_CHECK(memory);
    const auto bytes = memory->bytes();
    const std::size_t end = align_up(kSize, kPage);
    for (std::size_t i = kSize; i < end; ++i) UFFDA_CLIENT_CHECK(bytes[i] == std::byte{0});
    UFFDA_CLIENT_CHECK(matches(std::span<const std::byte>(bytes).subspan(kSize - 1000, 1000), kSize - 1000));
    [[maybe_unused]] const volatile std::byte beyond = bytes[end];
    return 0;
  });
  EXPECT_EQ(status, 128 + SIGBUS);
}

TEST_P(ServerMapping, AForkedChildIsServed) {
  if (!os::open_userfault({.features = usual_features() | UFFD_FEATURE_EVENT_FORK}))
    GTEST_SKIP() << "EVENT_FORK needs CAP_SYS_PTRACE";
  const auto body = [](Attached& attached) {
    auto memory = map_export(attached, "disk");
    UFFDA_CLIENT_CHECK(memory && page_matches(*memory, 0));
    std::array<pid_t, 3> children{};
    for (std::size_t i = 0; i < children.size(); ++i) {
      children[i] = ::fork();
      if (children[i] == 0) {
        const pid_t grandchild = ::fork();  // and it forks again
        const bool right = matches(object_bytes(*memory), 0);
        int status = 0;
        if (grandchild == 0) ::_exit(right ? 0 : 1);
        const bool both = ::waitpid(grandchild, &status, 0) == grandchild && status == 0 && right;
        ::_exit(both ? 0 : 1);
      }
    }
    UFFDA_CLIENT_CHECK(matches(object_bytes(*memory), 0));
    for (const pid_t child : children) {
      int status = 0;
      UFFDA_CLIENT_CHECK(::waitpid(child, &status, 0) == child);
      UFFDA_CLIENT_CHECK(status == 0);
    }
    return 0;
  };
  EXPECT_EQ(in_client(body, usual_features() | UFFD_FEATURE_EVENT_FORK), 0);
  // All of them are forgotten once they have exited, children too.
  EXPECT_TRUE(eventually([&] { return stat_of(server_->socket(), "/clients/address_spaces") == 0; }));
}

TEST_P(ServerMapping, ReadsByMessageAndByMemoryAreTheSameCache) {
  EXPECT_EQ(in_client([](Attached& attached) {
              std::vector<std::byte> buffer(kPage * 200 + 77);
              const auto got = attached.client.read("disk", {4711}, buffer);
              UFFDA_CLIENT_CHECK(got && *got == buffer.size() && matches(buffer, 4711));
              const auto tail = attached.client.read("disk", {kSize - 100}, buffer);
              UFFDA_CLIENT_CHECK(tail && *tail == 100 && matches(std::span(buffer).first(100), kSize - 100));
              const auto beyond = attached.client.read("disk", {kSize + 5}, buffer);
              UFFDA_CLIENT_CHECK(beyond && *beyond == 0);
              auto memory = map_export(attached, "disk");
              UFFDA_CLIENT_CHECK(memory && matches(object_bytes(*memory), 0));
              return 0;
            }),
            0);
}

INSTANTIATE_TEST_SUITE_P(Room, ServerMapping, testing::Values(ByteCount{64U << 20U}, ByteCount{1U << 20U}),
                         [](const auto& room) { return room.param.value > kSize ? "ForAll" : "ForAnEighth"; });

TEST(ServerSharing, ASecondClientCausesNoFetch) {
  if (!userfaultfd_works()) GTEST_SKIP() << "userfaultfd is not permitted here: needs CAP_SYS_PTRACE";
  const TempDir directory;
  write_pattern_file(directory.path("disk"), {kSize});
  const TestServer server(directory, {.exports = {{"disk", "file:" + directory.path("disk")}}});
  ASSERT_TRUE(server.ready());
  const auto read_all = [&] {
    auto attached = attach_to(server.socket(), usual_features());
    UFFDA_CLIENT_CHECK(attached);
    auto memory = map_export(*attached, "disk");
    UFFDA_CLIENT_CHECK(memory && matches(object_bytes(*memory), 0));
    return 0;
  };
  EXPECT_EQ(ForkedProcess(read_all).wait(), 0);
  const std::int64_t fetched = stat_of(server.socket(), "/fetches/bytes");
  EXPECT_GE(fetched, static_cast<std::int64_t>(kSize));
  EXPECT_EQ(ForkedProcess(read_all).wait(), 0);
  EXPECT_EQ(stat_of(server.socket(), "/fetches/bytes"), fetched);
  EXPECT_EQ(stat_of(server.socket(), "/resident/bytes"), static_cast<std::int64_t>(align_up(kSize, kPage)));
  EXPECT_GT(stat_of(server.socket(), "/faults/cached"), 0);
}

TEST(ServerSharing, TwoClientsAtOnceFetchEverythingOnce) {
  if (!userfaultfd_works()) GTEST_SKIP() << "userfaultfd is not permitted here: needs CAP_SYS_PTRACE";
  const TempDir directory;
  write_pattern_file(directory.path("disk"), {kSize});
  const TestServer server(directory, {.exports = {{"disk", "delay+file:" + directory.path("disk") + "?delay=1ms"}}});
  ASSERT_TRUE(server.ready());
  const auto read_all = [&] {
    auto attached = attach_to(server.socket(), usual_features());
    UFFDA_CLIENT_CHECK(attached);
    auto memory = map_export(*attached, "disk");
    UFFDA_CLIENT_CHECK(memory && matches(object_bytes(*memory), 0));
    return 0;
  };
  ForkedProcess first(read_all);
  ForkedProcess second(read_all);
  EXPECT_EQ(first.wait(), 0);
  EXPECT_EQ(second.wait(), 0);
  EXPECT_EQ(stat_of(server.socket(), "/exports/0/bytes"), static_cast<std::int64_t>(kSize));
}

}  // namespace
}  // namespace uffda::test
