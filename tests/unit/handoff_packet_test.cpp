// Packets of the handoff protocol and its client, against peers that behave and peers that do not.
#include "server/packet.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "server/client.h"

namespace uffda::handoff {
namespace {

using namespace std::chrono_literals;

Deadline soon() { return Deadline::after(20s); }  // a hang detector
Deadline at_once() { return Deadline::at(Clock::now()); }

struct Ends {
  os::UniqueFd one;
  os::UniqueFd other;
};

Ends make_ends() {
  std::array<int, 2> pair{};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()), 0);
  return {os::UniqueFd(pair[0]), os::UniqueFd(pair[1])};
}

ReadRequest some_request() {
  ReadRequest request{};
  request.header = make_header(Type::kRead, Direction::request, sizeof request);
  EXPECT_TRUE(put_name(request.name, "disk"));
  request.offset = 12345;
  request.length = 678;
  return request;
}

std::size_t open_descriptors() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator()));
}

TEST(HandoffPacket, ArrivesAsItWasSent) {
  Ends ends = make_ends();
  ASSERT_TRUE(send_message(ends.one.get(), some_request(), soon()));
  std::vector<std::byte> buffer(kMaxMessage);
  const auto packet = receive_packet(ends.other.get(), buffer, soon());
  ASSERT_TRUE(packet);
  EXPECT_EQ(packet->type(), Type::kRead);
  EXPECT_FALSE(packet->is_reply());
  EXPECT_FALSE(packet->descriptor);
  const auto request = parse<ReadRequest>(*packet);
  ASSERT_TRUE(request);
  EXPECT_EQ(get_name(request->name).value(), "disk");
  EXPECT_EQ(request->offset, 12345U);
  EXPECT_FALSE(parse<OpenRequest>(*packet)) << "another struct's size";
}

TEST(HandoffPacket, CarriesTheLargestReadInTwoParts) {
  Ends ends = make_ends();
  const Header header = make_header(Type::kRead, Direction::reply, sizeof header + kMaxRead);
  const std::vector<std::byte> bytes(kMaxRead, std::byte{0x5a});
  std::jthread sender(
      [&] { EXPECT_TRUE(send_packet(ends.one.get(), std::as_bytes(std::span(&header, 1)), bytes, soon())); });
  std::vector<std::byte> buffer(kMaxMessage);
  const auto packet = receive_packet(ends.other.get(), buffer, soon());
  ASSERT_TRUE(packet);
  EXPECT_TRUE(packet->is_reply());
  EXPECT_TRUE(std::ranges::equal(packet->body(), bytes));
}

TEST(HandoffPacket, PassesADescriptor) {
  Ends ends = make_ends();
  const os::UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(send_message(ends.one.get(), some_request(), soon(), null.get()));
  std::vector<std::byte> buffer(kMaxMessage);
  const auto packet = receive_packet(ends.other.get(), buffer, soon());
  ASSERT_TRUE(packet);
  ASSERT_TRUE(packet->descriptor);
  struct stat sent{};
  struct stat got{};
  ASSERT_EQ(::fstat(null.get(), &sent), 0);
  ASSERT_EQ(::fstat(packet->descriptor.get(), &got), 0);
  EXPECT_EQ(sent.st_rdev, got.st_rdev);
  EXPECT_NE(::fcntl(packet->descriptor.get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(HandoffPacket, TwoDescriptorsAreRefusedAndClosed) {
  Ends ends = make_ends();
  const os::UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const ReadRequest request = some_request();
  iovec part{const_cast<ReadRequest*>(&request), sizeof request};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(2 * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(2 * sizeof(int));
  const std::array<int, 2> both{null.get(), null.get()};
  std::memcpy(CMSG_DATA(header), both.data(), sizeof both);
  ASSERT_GT(::sendmsg(ends.one.get(), &message, 0), 0);
  std::vector<std::byte> buffer(kMaxMessage);
  const std::size_t before = open_descriptors();
  const auto packet = receive_packet(ends.other.get(), buffer, soon());
  ASSERT_FALSE(packet);
  EXPECT_EQ(packet.error().code(), Errc::protocol);
  EXPECT_EQ(open_descriptors(), before);
}

TEST(HandoffPacket, WrongHeadersAreRefused) {
  const std::vector<std::pair<const char*, std::function<void(Header&)>>> wrongs{
      {"magic", [](Header& header) { header.magic ^= 1; }},
      {"version", [](Header& header) { header.version = kVersion + 1; }},
      {"larger than what came", [](Header& header) { ++header.size; }},
      {"smaller than what came", [](Header& header) { --header.size; }},
  };
  for (const auto& [name, spoil] : wrongs) {
    Ends ends = make_ends();
    ReadRequest request = some_request();
    spoil(request.header);
    ASSERT_TRUE(send_message(ends.one.get(), request, soon()));
    std::vector<std::byte> buffer(kMaxMessage);
    const auto packet = receive_packet(ends.other.get(), buffer, soon());
    ASSERT_FALSE(packet) << name;
    EXPECT_EQ(packet.error().code(), Errc::protocol) << name;
  }
}

TEST(HandoffPacket, ShortOversizedAndMissingPacketsAreErrors) {
  Ends ends = make_ends();
  std::vector<std::byte> buffer(64);
  EXPECT_EQ(receive_packet(ends.other.get(), buffer, at_once()).error().code(), Errc::timed_out);
  ASSERT_EQ(::send(ends.one.get(), "UFDA", 4, 0), 4);
  EXPECT_EQ(receive_packet(ends.other.get(), buffer, soon()).error().code(), Errc::protocol);
  ASSERT_TRUE(send_message(ends.one.get(), some_request(), soon()));
  EXPECT_EQ(receive_packet(ends.other.get(), buffer, soon()).error().code(), Errc::protocol) << "does not fit";
  const std::vector<std::byte> huge(kMaxMessage + 1);
  EXPECT_EQ(send_packet(ends.one.get(), huge, {}, soon()).error().code(), Errc::invalid_argument);
  ends.one.reset();
  EXPECT_EQ(receive_packet(ends.other.get(), buffer, soon()).error().code(), Errc::gone);
  EXPECT_EQ(send_message(ends.other.get(), some_request(), soon()).error().code(), Errc::gone);
}

TEST(HandoffPacket, ErrorsKeepTheirCodeAndText) {
  for (int code = 0; code <= static_cast<int>(Errc::protocol); ++code) {
    const ErrorReply reply = make_error_reply(Error(static_cast<Errc>(code), "why"));
    const Packet packet{.header = reply.header, .bytes = std::as_bytes(std::span(&reply, 1)), .descriptor = {}};
    EXPECT_EQ(packet.type(), Type::kError);
    EXPECT_EQ(read_error_reply(packet).code(), static_cast<Errc>(code));
    EXPECT_EQ(read_error_reply(packet).context(), "why");
  }
  ErrorReply unknown = make_error_reply(Error(Errc::io, std::string(10 * kTextSize, 'x')));
  EXPECT_EQ(get_text(unknown.text).size(), kTextSize - 1);
  unknown.header.status = 999;
  const Packet packet{.header = unknown.header, .bytes = std::as_bytes(std::span(&unknown, 1)), .descriptor = {}};
  EXPECT_EQ(read_error_reply(packet).code(), Errc::protocol);
}

TEST(HandoffPacket, NamesAreChecked) {
  char field[kNameSize];
  EXPECT_FALSE(put_name(field, ""));
  EXPECT_FALSE(put_name(field, std::string(kNameSize, 'n')));
  EXPECT_FALSE(put_name(field, std::string_view("a\0b", 3)));
  EXPECT_TRUE(put_name(field, std::string(kNameSize - 1, 'n')));
  EXPECT_EQ(get_name(field).value(), std::string(kNameSize - 1, 'n'));
  std::memset(field, 'n', sizeof field);
  EXPECT_FALSE(get_name(field)) << "not terminated";
}

/// A peer that answers each request with what `answer` makes of it.
class Peer {
 public:
  explicit Peer(std::function<void(int socket, const Packet&)> answer) : answer_(std::move(answer)) {
    std::string name = std::filesystem::temp_directory_path() / "uffda-test-XXXXXX";
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path().copy(address.sun_path, sizeof address.sun_path - 1);
    listener_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener_.get(), 4), 0);
    thread_ = std::thread([this] { run(); });
  }
  ~Peer() {
    (void)::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
    std::filesystem::remove_all(directory_);
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  [[nodiscard]] std::string path() const { return directory_ + "/s"; }

 private:
  void run() {
    std::vector<std::byte> buffer(kMaxMessage);
    while (true) {
      const os::UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!socket) return;
      while (const auto packet = receive_packet(socket.get(), buffer, soon())) answer_(socket.get(), *packet);
    }
  }

  std::function<void(int, const Packet&)> answer_;
  std::string directory_;
  os::UniqueFd listener_;
  std::thread thread_;
};

TEST(HandoffClient, ReadsInPartsAndStopsAtTheEnd) {
  static constexpr std::size_t kSize = 300'000;
  Peer peer([](int socket, const Packet& packet) {
    const auto request = parse<ReadRequest>(packet);
    ASSERT_TRUE(request);
    ASSERT_LE(request->length, kMaxRead);
    const std::size_t length =
        std::min<std::size_t>(request->length, kSize - std::min<std::size_t>(kSize, request->offset));
    std::vector<std::byte> bytes(length);
    for (std::size_t i = 0; i < length; ++i) bytes[i] = static_cast<std::byte>((request->offset + i) % 251);
    const Header header = make_header(Type::kRead, Direction::reply, sizeof header + length);
    EXPECT_TRUE(send_packet(socket, std::as_bytes(std::span(&header, 1)), bytes, soon()));
  });
  auto client = HandoffClient::connect(peer.path(), 20s);
  ASSERT_TRUE(client);
  std::vector<std::byte> buffer(kSize);
  EXPECT_EQ(client->read("disk", {1000}, buffer).value(), kSize - 1000);
  for (std::size_t i = 0; i < kSize - 1000; ++i) ASSERT_EQ(buffer[i], static_cast<std::byte>((1000 + i) % 251));
  EXPECT_EQ(client->read("disk", {kSize}, buffer).value(), 0U);
}

TEST(HandoffClient, LiesOfTheServerAreErrors) {
  Peer peer([](int socket, const Packet& packet) {
    Header header = make_header(packet.type(), Direction::reply, sizeof header);
    if (packet.type() == Type::kRead) {  // more bytes than were asked for
      const std::vector<std::byte> bytes(kMaxRead);
      header.size = static_cast<std::uint32_t>(sizeof header + bytes.size());
      EXPECT_TRUE(send_packet(socket, std::as_bytes(std::span(&header, 1)), bytes, soon()));
    } else if (packet.type() == Type::kOpen) {  // an OpenReply without a page cache
      OpenReply reply{};
      reply.header = make_header(Type::kOpen, Direction::reply, sizeof reply);
      reply.folio_size = 4096;
      EXPECT_TRUE(send_message(socket, reply, soon()));
    } else {  // an answer to something else
      header.type = static_cast<std::uint16_t>(kReply | static_cast<unsigned>(Type::kStats));
      EXPECT_TRUE(send_message(socket, header, soon()));
    }
  });
  auto client = HandoffClient::connect(peer.path(), 20s);
  ASSERT_TRUE(client);
  std::vector<std::byte> buffer(10);
  EXPECT_EQ(client->read("disk", {0}, buffer).error().code(), Errc::protocol);
  EXPECT_EQ(client->open("disk").error().code(), Errc::protocol);
  EXPECT_EQ(client->watch().error().code(), Errc::protocol);
  EXPECT_EQ(client->device().error().code(), Errc::protocol);
}

TEST(HandoffClient, ConnectsAgainAfterATimeOut) {
  int requests = 0;
  Peer peer([&](int socket, const Packet& packet) {
    if (++requests == 1) return;  // no answer
    const Header header = make_header(packet.type(), Direction::reply, sizeof header);
    EXPECT_TRUE(send_message(socket, header, soon()));
  });
  auto client = HandoffClient::connect(peer.path(), 50ms);
  ASSERT_TRUE(client);
  EXPECT_EQ(client->watch().error().code(), Errc::timed_out);
  EXPECT_EQ(client->socket(), -1);
  auto patient = HandoffClient::connect(peer.path(), 20s);
  ASSERT_TRUE(patient);
  EXPECT_TRUE(patient->watch());
}

TEST(HandoffClient, NoServerNamesTheRemedy) {
  const auto client = HandoffClient::connect("/nonexistent/socket", 1s);
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code(), Errc::gone);
  EXPECT_NE(client.error().context().find("uffda serve --socket /nonexistent/socket"), std::string::npos);
  EXPECT_EQ(HandoffClient::connect(std::string(200, 'x'), 1s).error().code(), Errc::invalid_argument);
}

}  // namespace
}  // namespace uffda::handoff
