// Clients that die or lie, against a real server and the real kernel.
//
// The rulebook. A hostile client may send any bytes and any descriptors, at any time, on as many connections as it
// gets, change its address space behind the server's back, and die at any moment. Then:
//   1 The server lives, and serves.
//   2 Another client reads every byte of its mapping right, meanwhile and afterwards. (Every test here has one that
//   never stops.) 3 What was wrong is said in an Error; after something that is no packet the connection ends. 4
//   Nothing that it sent stays: no descriptor, no connection, no address space of a process that has exited. 5 It can
//   harm itself: a fault where it registered memory that it told nobody of is SIGBUS, never a page of zeroes from us.
//   6 It cannot change an export.
// Not in the book: another process of the same user may ptrace the server, so one user is one trust domain.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "server/packet.h"
#include "support/handoff_support.h"
#include "support/test_support.h"

namespace uffda::test {
namespace {

using handoff::Direction;
using handoff::Header;
using handoff::Type;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kSize = (2U << 20U) + 77;
constexpr std::uint64_t kWhole = (kSize + kPage - 1) / kPage * kPage;
constexpr Duration kSoon = std::chrono::seconds(20);

class Hostile : public testing::Test {
 protected:
  void SetUp() override {
    if (!userfaultfd_works()) GTEST_SKIP() << "userfaultfd is not permitted here: needs CAP_SYS_PTRACE";
    write_pattern_file(directory_.path("disk"), {kSize});
    ServeOptions options;
    options.exports = {{"disk", "file:" + directory_.path("disk")}};
    options.budget = {kSize / 2};  // so that the honest client's faults are never only cached ones
    options.max_connections = 24;
    options.max_clients = 8;
    server_.emplace(directory_, options);
    ASSERT_TRUE(server_->ready());
    honest_.emplace([this] { return read_all_the_time(); });
    ASSERT_TRUE(eventually([&] { return stat_of(socket(), "/fetches/bytes") > 0; }));
    // Its own connection and the one that asked are counted: a few less at the end is right, too.
    descriptors_ = server_->descriptors();
  }
  void TearDown() override {
    if (!honest_) return;
    stop_.open();
    EXPECT_EQ(honest_->wait(), 0) << "the honest client saw something else than its bytes";
    EXPECT_TRUE(eventually([&] { return stat_of(socket(), "/clients/address_spaces") == 0; }));
    // One connection or another may be on its way out; nothing may stay.
    EXPECT_TRUE(eventually([&] { return server_->descriptors() <= descriptors_; }))
        << server_->descriptors() << " of " << descriptors_;
    server_->terminate();
    EXPECT_EQ(server_->wait(), 0);
  }
  [[nodiscard]] const std::string& socket() const { return server_->socket(); }

  int read_all_the_time() {
    auto attached = attach_to(socket(), usual_features());
    UFFDA_CLIENT_CHECK(attached);
    auto memory = map_export(*attached, "disk");
    UFFDA_CLIENT_CHECK(memory);
    const auto bytes = std::span<const std::byte>(memory->bytes()).first(kSize);
    do {
      UFFDA_CLIENT_CHECK(!Pattern::mismatch(bytes, 0));
      UFFDA_CLIENT_CHECK(::madvise(memory->bytes().data(), memory->bytes().size(), MADV_DONTNEED) == 0);
    } while (!stop_.is_open());
    return 0;
  }
  /// Runs `body` as a hostile client; its exit status.
  int hostile(const std::function<int(Attached&)>& body, std::uint64_t features = usual_features()) {
    return ForkedProcess([&] {
             auto attached = attach_to(socket(), features);
             UFFDA_CLIENT_CHECK(attached);
             return body(*attached);
           })
        .wait();
  }
  [[nodiscard]] os::UniqueFd connection() const {
    auto connected = handoff::connect_socket(socket(), Deadline::after(kSoon));
    EXPECT_TRUE(connected);
    return connected ? std::move(*connected) : os::UniqueFd();
  }

  TempDir directory_;
  std::optional<TestServer> server_;
  Gate stop_;
  std::optional<ForkedProcess> honest_;
  std::size_t descriptors_ = 0;
};

/// Sends bytes as one packet, with descriptors.
bool send_raw(int socket, std::span<const std::byte> bytes, std::span<const int> descriptors = {}) {
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  std::vector<char> control(CMSG_SPACE(descriptors.size_bytes()));
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) >= 0;
}

template <typename Message>
std::span<const std::byte> bytes_of(const Message& message) {
  return std::as_bytes(std::span(&message, 1));
}

/// The Error that the server answers with, or what else happened.
Error answer_of(int socket) {
  std::vector<std::byte> buffer(handoff::kMaxMessage);
  const auto packet = handoff::receive_packet(socket, buffer, Deadline::after(kSoon));
  if (!packet) return packet.error();
  if (packet->type() != Type::kError) return Error(Errc::already_exists, "no error");
  return handoff::read_error_reply(*packet);
}

bool ended(int socket) {
  std::array<std::byte, 16> buffer;
  const auto packet = handoff::receive_packet(socket, buffer, Deadline::after(kSoon));
  return !packet && packet.error().code() == Errc::gone;
}

TEST_F(Hostile, WhatIsNoPacketIsAnsweredAndEndsTheConnection) {
  Header wrong_magic = make_header(Type::kStats, Direction::request, sizeof(Header));
  wrong_magic.magic = 0x12345678;
  Header wrong_version = make_header(Type::kStats, Direction::request, sizeof(Header));
  wrong_version.version = 77;
  const Header wrong_size = make_header(Type::kStats, Direction::request, 4096);
  const std::array<std::byte, 1> one{};
  const std::vector<std::byte> long_one(60'000, std::byte{0x41});
  const std::vector<std::span<const std::byte>> packets{bytes_of(wrong_magic), bytes_of(wrong_version),
                                                        bytes_of(wrong_size), one, long_one};
  for (const auto packet : packets) {
    const os::UniqueFd socket = connection();
    ASSERT_TRUE(send_raw(socket.get(), packet));
    const Error error = answer_of(socket.get());
    EXPECT_EQ(error.code(), Errc::protocol) << error.message();
    EXPECT_FALSE(error.context().empty());
    EXPECT_TRUE(ended(socket.get()));
  }
}

TEST_F(Hostile, AWrongRequestIsAnsweredAndTheConnectionStays) {
  const os::UniqueFd socket = connection();
  const std::array<Type, 4> types{Type::kNotice, Type::kError, static_cast<Type>(0), static_cast<Type>(0x7000)};
  for (const Type type : types) {
    ASSERT_TRUE(send_raw(socket.get(), bytes_of(make_header(type, Direction::request, sizeof(Header)))));
    EXPECT_EQ(answer_of(socket.get()).code(), Errc::protocol);
  }
  handoff::OpenRequest open{};
  open.header = make_header(Type::kOpen, Direction::request, sizeof open);
  std::memset(open.name, 'a', sizeof open.name);
  ASSERT_TRUE(send_raw(socket.get(), bytes_of(open)));
  EXPECT_EQ(answer_of(socket.get()).code(), Errc::protocol);
  handoff::ReadRequest read{};
  read.header = make_header(Type::kRead, Direction::request, sizeof read);
  ASSERT_TRUE(handoff::put_name(read.name, "disk"));
  read.length = UINT32_MAX;
  ASSERT_TRUE(send_raw(socket.get(), bytes_of(read)));
  EXPECT_EQ(answer_of(socket.get()).code(), Errc::invalid_argument);
}

TEST_F(Hostile, RandomPacketsForAWhile) {
  std::mt19937_64 random(20);
  for (int round = 0; round < 300; ++round) {
    const os::UniqueFd socket = connection();
    std::vector<std::byte> packet(random() % 400);
    for (std::byte& byte : packet) byte = static_cast<std::byte>(random());
    if (packet.size() >= sizeof(Header) && round % 4 != 0) {
      const Header header = make_header(static_cast<Type>(random() % 12), Direction::request, packet.size());
      std::memcpy(packet.data(), &header, sizeof header);
    }
    if (!send_raw(socket.get(), packet) || packet.empty() || round % 3 == 0)
      continue;  // some go without waiting for the answer
    EXPECT_NE(answer_of(socket.get()).code(), Errc::timed_out);
  }
}

TEST_F(Hostile, DescriptorsThatNobodyAskedForDoNotStay) {
  const std::vector<int> many(50, STDERR_FILENO);
  const auto stats = make_header(Type::kStats, Direction::request, sizeof(Header));
  for (const std::size_t count : {1U, 2U, 8U, 9U, 50U}) {
    const os::UniqueFd socket = connection();
    ASSERT_TRUE(send_raw(socket.get(), bytes_of(stats), std::span(many).first(count)));
    EXPECT_EQ(answer_of(socket.get()).code(), Errc::protocol);
    const os::UniqueFd with_garbage = connection();
    ASSERT_TRUE(send_raw(with_garbage.get(), bytes_of(stats).first(3), std::span(many).first(count)));
    EXPECT_EQ(answer_of(with_garbage.get()).code(), Errc::protocol);
  }
}

TEST_F(Hostile, OnlyAUsableUserfaultfdIsAttached) {
  auto client = HandoffClient::connect(socket());
  ASSERT_TRUE(client);
  const os::UniqueFd file(::open("/dev/zero", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(client->attach(file.get(), 0).error().code(), Errc::invalid_argument);
  EXPECT_EQ(client->attach(client->socket(), 0).error().code(), Errc::invalid_argument);
  const os::UniqueFd raw(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  EXPECT_EQ(client->attach(raw.get(), 0).error().code(), Errc::invalid_argument) << "before UFFDIO_API";
  EXPECT_EQ(client->attach(-1, 0).error().code(), Errc::invalid_argument);
}

TEST_F(Hostile, AUserfaultfdOfADeadProcessIsRefused) {
  std::array<int, 2> ends{-1, -1};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
  const os::UniqueFd here(ends[0]);
  os::UniqueFd there(ends[1]);
  ForkedProcess dead([&] {
    auto userfault = os::open_userfault({.features = usual_features()});
    UFFDA_CLIENT_CHECK(userfault);
    const int fd = (*userfault)->fd();
    UFFDA_CLIENT_CHECK(
        send_raw(there.get(), bytes_of(make_header(Type::kAttach, Direction::request, sizeof(Header))), {&fd, 1}));
    return 0;
  });
  std::array<std::byte, 64> buffer;
  auto packet = handoff::receive_packet(here.get(), buffer, Deadline::after(kSoon));
  ASSERT_TRUE(packet && packet->descriptor);
  ASSERT_EQ(dead.wait(), 0);
  auto client = HandoffClient::connect(socket());
  ASSERT_TRUE(client);
  EXPECT_EQ(client->attach(packet->descriptor.get(), usual_features()).error().code(), Errc::gone);
}

TEST_F(Hostile, PlacesThatCannotBeAreRefused) {
  EXPECT_EQ(hostile([](Attached& attached) {
              const Address at{0x7000'0000'0000};
              const auto code = [&](Address address, std::uint64_t length, std::uint64_t offset,
                                    const char* name = "disk") {
                const auto mapped = attached.client.map(attached.token, name, address, {length}, {offset});
                return mapped ? Errc::already_exists : mapped.error().code();
              };
              UFFDA_CLIENT_CHECK(code(at, 0, 0) == Errc::invalid_argument);
              UFFDA_CLIENT_CHECK(code({at.value + 1}, kPage, 0) == Errc::invalid_argument);
              UFFDA_CLIENT_CHECK(code(at, kPage + 1, 0) == Errc::invalid_argument);
              UFFDA_CLIENT_CHECK(code(at, kPage, 1) == Errc::invalid_argument);
              UFFDA_CLIENT_CHECK(code({UINT64_MAX - kPage + 1}, kPage, 0) == Errc::invalid_argument);
              UFFDA_CLIENT_CHECK(code({UINT64_MAX - kPage + 1}, kPage * 2, 0) == Errc::invalid_argument);
              UFFDA_CLIENT_CHECK(code(at, UINT64_MAX - kPage + 1, 0) == Errc::invalid_argument);
              UFFDA_CLIENT_CHECK(code(at, kWhole + kPage, 0) == Errc::out_of_range);
              UFFDA_CLIENT_CHECK(code(at, kPage, kWhole) == Errc::out_of_range);
              UFFDA_CLIENT_CHECK(code(at, kPage, UINT64_MAX - kPage + 1) == Errc::out_of_range);
              UFFDA_CLIENT_CHECK(code(at, kPage, 0, "no such export") == Errc::not_found);
              UFFDA_CLIENT_CHECK(attached.client.unmap(attached.token, {at.value + 5}, {kPage}).error().code() ==
                                 Errc::invalid_argument);
              attached.token.bytes[0] ^= 1;
              UFFDA_CLIENT_CHECK(code(at, kPage, 0) == Errc::not_found);
              UFFDA_CLIENT_CHECK(attached.client.unmap(attached.token, at, {kPage}).error().code() == Errc::not_found);
              return 0;
            }),
            0);
}

TEST_F(Hostile, MappingsThatWereNeverMade) {
  EXPECT_EQ(hostile([](Attached& attached) {
              std::mt19937_64 random(3);
              for (int i = 0; i < 2000; ++i) {  // overlapping, nowhere mapped, never touched
                const Address at{0x7000'0000'0000 + random() % 4096 * kPage};
                const std::uint64_t length = (1 + random() % (kWhole / kPage)) * kPage;
                UFFDA_CLIENT_CHECK(attached.client.map(attached.token, "disk", at, {length}, {}));
                if (i % 3 == 0)
                  UFFDA_CLIENT_CHECK(attached.client.unmap(attached.token, at + ByteCount{kPage}, {kPage * 7}));
              }
              return 0;
            }),
            0);
}

TEST_F(Hostile, MemoryThatNobodyToldOfIsSigbusAndNotZeroes) {
  const int status = hostile([](Attached& attached) {
    auto memory = os::map_memory({kPage * 4}, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS);
    UFFDA_CLIENT_CHECK(memory);
    UFFDA_CLIENT_CHECK(attached.userfault->register_range(memory->address(), {kPage * 4}, UffdMode::missing));
    [[maybe_unused]] const volatile std::byte seen = memory->bytes()[kPage];
    return 0;
  });
  EXPECT_EQ(status, 128 + SIGBUS);
}

TEST_F(Hostile, AnExportSaidToBeWhereOtherMemoryIs) {
  // Its anonymous memory, told to be the export: CONTINUE cannot map there, and that is its own trouble.
  ForkedProcess liar([&] {
    auto attached = attach_to(socket(), usual_features());
    UFFDA_CLIENT_CHECK(attached);
    auto memory = os::map_memory({kPage * 4}, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS);
    UFFDA_CLIENT_CHECK(memory);
    UFFDA_CLIENT_CHECK(attached->userfault->register_range(memory->address(), {kPage * 4}, UffdMode::missing));
    UFFDA_CLIENT_CHECK(attached->client.map(attached->token, "disk", memory->address(), {kPage * 4}, {}));
    std::thread toucher([&] { [[maybe_unused]] const volatile std::byte seen = memory->bytes()[0]; });
    std::array<std::byte, 100> buffer{};
    for (int i = 0; i < 100; ++i) UFFDA_CLIENT_CHECK(attached->client.read("disk", {}, buffer));
    std::fflush(nullptr);
    ::kill(::getpid(), SIGKILL);  // with a thread that may be blocked for good
    toucher.join();
    return 0;
  });
  const int status = liar.wait();
  EXPECT_TRUE(status == 128 + SIGKILL || status == 128 + SIGBUS) << status;
}

TEST_F(Hostile, FeaturesThatItHasNot) {
  EXPECT_EQ(
      hostile([](Attached& attached) {
        // It says EVENT_FORK and has no event at all: another one is attached under a false flag.
        auto silent = os::open_userfault({.features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM});
        UFFDA_CLIENT_CHECK(silent);
        auto token = attached.client.attach((*silent)->fd(), UINT64_MAX);
        UFFDA_CLIENT_CHECK(token);
        Attached other{.client = std::move(attached.client), .userfault = std::move(*silent), .token = *token};
        auto memory = map_export(other, "disk");
        UFFDA_CLIENT_CHECK(memory && !Pattern::mismatch(std::span<const std::byte>(memory->bytes()).first(kSize), 0));
        // Unmapped without an event: the server does not know, and something else is there now.
        std::byte* data = memory->bytes().data();
        UFFDA_CLIENT_CHECK(::mmap(data, kWhole, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == data);
        for (std::size_t i = 0; i < kWhole; i += 512) UFFDA_CLIENT_CHECK(data[i] == std::byte{0});
        return 0;
      }),
      0);
}

TEST_F(Hostile, ADescriptionThatWasMadeBlocking) {
  EXPECT_EQ(hostile([](Attached& attached) {
              const int fd = attached.userfault->fd();
              UFFDA_CLIENT_CHECK(::fcntl(fd, F_SETFL, 0) == 0);
              auto memory = map_export(attached, "disk");
              UFFDA_CLIENT_CHECK(memory);
              const auto bytes = std::span<const std::byte>(memory->bytes());
              for (std::size_t page = 0; page < kSize / kPage; ++page) {
                UFFDA_CLIENT_CHECK(::fcntl(fd, F_SETFL, 0) == 0);
                UFFDA_CLIENT_CHECK(!Pattern::mismatch(bytes.subspan(page * kPage, kPage), page * kPage));
              }
              UFFDA_CLIENT_CHECK(::fcntl(fd, F_SETFL, 0) == 0);
              return 0;
            }),
            0);
}

TEST_F(Hostile, OneUserfaultfdAttachedTwice) {
  const int status = hostile([](Attached& attached) {
    UFFDA_CLIENT_CHECK(attached.client.attach(attached.userfault->fd(), usual_features()));
    auto memory = map_export(attached, "disk");
    UFFDA_CLIENT_CHECK(memory);
    // The second one knows of no mapping and answers some faults with SIGBUS: its own fault. Other bytes it never sees.
    return Pattern::mismatch(std::span<const std::byte>(memory->bytes()).first(kSize), 0) ? 1 : 0;
  });
  EXPECT_TRUE(status == 0 || status == 128 + SIGBUS) << status;
}

TEST_F(Hostile, AClientKilledWithThreadsThatWait) {
  for (int round = 0; round < 5; ++round) {
    const Gate started;
    ForkedProcess victim([&] {
      auto attached = attach_to(socket(), usual_features());
      UFFDA_CLIENT_CHECK(attached);
      auto memory = map_export(*attached, "disk");
      UFFDA_CLIENT_CHECK(memory);
      std::vector<std::thread> threads;
      for (unsigned seed = 0; seed < 6; ++seed) {
        threads.emplace_back([&, seed] {
          std::mt19937_64 random(seed);
          for (;;) {
            const std::uint64_t page = random() % (kWhole / kPage);
            [[maybe_unused]] const volatile std::byte seen = memory->bytes()[page * kPage];
            ::madvise(memory->bytes().data() + page * kPage, kPage, MADV_DONTNEED);
          }
        });
      }
      started.open();
      for (std::thread& thread : threads) thread.join();
      return 0;
    });
    started.wait();
    EXPECT_TRUE(eventually([&] { return stat_of(socket(), "/clients/address_spaces") >= 2; }));
    victim.signal(SIGKILL);
    EXPECT_EQ(victim.wait(), 128 + SIGKILL);
  }
}

TEST_F(Hostile, ReadsWhoseAnswersNobodyTakes) {
  std::vector<os::UniqueFd> sockets;
  handoff::ReadRequest read{};
  read.header = make_header(Type::kRead, Direction::request, sizeof read);
  ASSERT_TRUE(handoff::put_name(read.name, "disk"));
  read.length = handoff::kMaxRead;
  for (int i = 0; i < 8; ++i) {
    sockets.push_back(connection());
    for (int sent = 0; sent < 20; ++sent) {
      if (::send(sockets.back().get(), &read, sizeof read, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) break;
    }
  }
  EXPECT_GE(stat_of(socket(), "/clients/connections"), 8);  // somebody else is answered
}

TEST_F(Hostile, ConnectionsBeyondTheLimitAreRefusedAndThoseWithinWork) {
  std::vector<os::UniqueFd> sockets;
  for (int i = 0; i < 40; ++i) sockets.push_back(connection());
  const auto stats = make_header(Type::kStats, Direction::request, sizeof(Header));
  ASSERT_TRUE(send_raw(sockets.front().get(), bytes_of(stats)));
  EXPECT_EQ(answer_of(sockets.front().get()).code(), Errc::already_exists);  // no error
  const Error refused = answer_of(sockets.back().get());
  EXPECT_EQ(refused.code(), Errc::no_memory) << refused.message();
  sockets.clear();
  EXPECT_TRUE(eventually([&] { return stat_of(socket(), "/clients/connections") > 0; }));
}

TEST_F(Hostile, AddressSpacesBeyondTheLimitAreRefused) {
  EXPECT_EQ(hostile([](Attached& attached) {
              std::vector<std::unique_ptr<os::Userfault>> kept;
              Errc code{};
              for (int i = 0; i < 12; ++i) {
                auto userfault = os::open_userfault({.features = usual_features()});
                UFFDA_CLIENT_CHECK(userfault);
                const auto token = attached.client.attach((*userfault)->fd(), usual_features());
                kept.push_back(std::move(*userfault));
                if (!token) code = token.error().code();
              }
              UFFDA_CLIENT_CHECK(code == Errc::no_memory);
              return 0;
            }),
            0);
}

TEST_F(Hostile, AWatcherThatReadsNothing) {
  const os::UniqueFd socket = connection();
  ASSERT_TRUE(send_raw(socket.get(), bytes_of(make_header(Type::kWatch, Direction::request, sizeof(Header)))));
  EXPECT_EQ(answer_of(socket.get()).code(), Errc::already_exists);
  ASSERT_TRUE(send_raw(socket.get(), std::array<std::byte, 5>{}));  // and then talks nonsense
  EXPECT_EQ(answer_of(socket.get()).code(), Errc::protocol);
  EXPECT_TRUE(ended(socket.get()));
}

TEST_F(Hostile, AnExportCannotBeWritten) {
  EXPECT_EQ(hostile([](Attached& attached) {
              const auto remote = attached.client.open("disk");
              UFFDA_CLIENT_CHECK(remote);
              const int fd = remote->cache.get();
              UFFDA_CLIENT_CHECK(::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED &&
                                 errno == EACCES);
              void* shared = ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd, 0);
              UFFDA_CLIENT_CHECK(shared != MAP_FAILED);
              UFFDA_CLIENT_CHECK(::mprotect(shared, kPage, PROT_READ | PROT_WRITE) != 0 && errno == EACCES);
              UFFDA_CLIENT_CHECK(::write(fd, "x", 1) < 0 && ::pwrite(fd, "x", 1, 0) < 0);
              UFFDA_CLIENT_CHECK(::ftruncate(fd, 0) != 0);
              UFFDA_CLIENT_CHECK(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPage) != 0);
              return 0;
            }),
            0);
}

TEST_F(Hostile, AbsentPagesTouchedWithoutRegistrationPolluteNobodyElse) {
  // It maps the page cache and reads without registering: zeroes for itself, and zero pages in the shared cache.
  EXPECT_EQ(
      hostile([](Attached& attached) {
        const auto remote = attached.client.open("disk");
        UFFDA_CLIENT_CHECK(remote);
        for (int round = 0; round < 20; ++round) {
          auto memory = os::map_memory({kWhole}, PROT_READ, MAP_PRIVATE, remote->cache.get());
          UFFDA_CLIENT_CHECK(memory);
          unsigned sum = 0;
          for (std::size_t i = 0; i < kWhole; i += kPage) sum += static_cast<unsigned>(memory->bytes()[i]);
          UFFDA_CLIENT_CHECK(sum != 1);  // so that the reads are there
        }
        auto memory = map_export(attached, "disk");
        UFFDA_CLIENT_CHECK(memory && !Pattern::mismatch(std::span<const std::byte>(memory->bytes()).first(kSize), 0));
        return 0;
      }),
      0);
}

}  // namespace
}  // namespace uffda::test
