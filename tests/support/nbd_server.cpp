#include "support/nbd_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <span>

#include "support/test_support.h"

namespace uffda::test {
namespace {

/// Bytes in the order of the network.
class Packet {
 public:
  template <typename Integer>
  Packet& put(Integer value) {
    for (unsigned shift = sizeof value * 8; shift != 0; shift -= 8) bytes_.push_back(std::byte(value >> (shift - 8)));
    return *this;
  }
  Packet& put(const std::vector<std::byte>& more) {
    bytes_.insert(bytes_.end(), more.begin(), more.end());
    return *this;
  }
  Packet& put_text(const std::string& text) {
    for (const char c : text) bytes_.push_back(std::byte(c));
    return *this;
  }
  [[nodiscard]] const std::vector<std::byte>& all() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

std::uint64_t number(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (const std::byte byte : bytes) value = value << 8U | std::to_integer<std::uint64_t>(byte);
  return value;
}

constexpr std::uint64_t kOptionMagic = 0x49484156454F5054;
constexpr std::uint64_t kOptionReplyMagic = 0x3e889045565a9;
constexpr std::uint32_t kRequestMagic = 0x25609513;
constexpr std::uint32_t kSimpleReplyMagic = 0x67446698;
constexpr std::uint32_t kStructuredReplyMagic = 0x668e33ef;
constexpr std::uint32_t kError = std::uint32_t{1} << 31U;

std::vector<std::byte> chunk(std::uint16_t type, std::uint64_t handle, const std::vector<std::byte>& payload) {
  return Packet()
      .put(kStructuredReplyMagic)
      .put(std::uint16_t{1})
      .put(type)
      .put(handle)
      .put(static_cast<std::uint32_t>(payload.size()))
      .put(payload)
      .all();
}

}  // namespace

Result<Nbdkit> Nbdkit::start(std::string socket, std::vector<std::string> arguments, Access access) {
  Nbdkit server(std::move(socket), std::move(arguments), access);
  const auto started = server.restart();
  if (!started) return std::unexpected(started.error());
  return server;
}

Result<void> Nbdkit::restart(std::vector<std::string> arguments) {
  arguments_ = std::move(arguments);
  return restart();
}

Result<void> Nbdkit::restart() {
  ::unlink(socket_.c_str());
  std::vector<std::string> command{"nbdkit", "--foreground", "--unix", socket_};
  if (access_ == Access::read_only) command.emplace_back("--readonly");
  command.insert(command.end(), arguments_.begin(), arguments_.end());
  auto process = ChildProcess::start(command, socket_ + ".log");
  if (!process) return fail(Errc::unsupported, process.error().context());
  process_ = std::move(*process);
  return wait_for_socket(socket_, Deadline::after(std::chrono::seconds(30)));
}

void FakeNbdServer::Client::send(const std::vector<std::byte>& bytes) const {
  std::span<const std::byte> left = bytes;
  while (!left.empty()) {
    const ssize_t sent = ::send(fd_, left.data(), left.size(), MSG_NOSIGNAL);
    if (sent <= 0) return;  // the client has gone
    left = left.subspan(static_cast<std::size_t>(sent));
  }
}

void FakeNbdServer::Client::answer(const Read& read) const {
  std::vector<std::byte> data(read.length);
  Pattern::fill(data, read.offset);
  if (structured_) {
    send(chunk(1, read.handle, Packet().put(read.offset).put(data).all()));
  } else {
    send(Packet().put(kSimpleReplyMagic).put(std::uint32_t{0}).put(read.handle).put(data).all());
  }
}

void FakeNbdServer::Client::answer_in_part(const Read& read, std::uint32_t length) const {
  std::vector<std::byte> data(length);
  Pattern::fill(data, read.offset);
  send(chunk(1, read.handle, Packet().put(read.offset).put(data).all()));
}

void FakeNbdServer::Client::refuse(const Read& read, std::uint32_t error) const {
  if (structured_) {
    send(chunk(0x8001, read.handle, Packet().put(error).put(std::uint16_t{0}).all()));
  } else {
    send(Packet().put(kSimpleReplyMagic).put(error).put(read.handle).all());
  }
}

void FakeNbdServer::Client::close() const { ::shutdown(fd_, SHUT_RDWR); }

/// One client from its greeting to its end.
class FakeNbdServer::Session {
 public:
  Session(FakeNbdServer& server, os::UniqueFd fd, unsigned number)
      : server_(server), fd_(std::move(fd)), number_(number) {
    thread_ = std::thread([this] { run(); });
  }
  ~Session() {
    ::shutdown(fd_.get(), SHUT_RDWR);
    thread_.join();
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

 private:
  bool receive(std::span<std::byte> bytes) const {
    while (!bytes.empty()) {
      const ssize_t got = ::recv(fd_.get(), bytes.data(), bytes.size(), 0);
      if (got <= 0) return false;
      bytes = bytes.subspan(static_cast<std::size_t>(got));
    }
    return true;
  }

  void run() {
    Client client(fd_.get(), false);
    const Script& script = server_.script_;
    if (script.greet && !script.greet(client, number_)) return;
    client.send(Packet().put_text("NBDMAGIC").put(kOptionMagic).put(std::uint16_t{3}).all());
    std::vector<std::byte> flags(4);
    if (receive(flags) && negotiate(client)) serve();
  }

  static void reply(const Client& client, std::uint32_t option, std::uint32_t type,
                    const std::vector<std::byte>& data = {}) {
    client.send(Packet()
                    .put(kOptionReplyMagic)
                    .put(option)
                    .put(type)
                    .put(static_cast<std::uint32_t>(data.size()))
                    .put(data)
                    .all());
  }

  bool negotiate(const Client& client) {
    const Script& script = server_.script_;
    std::vector<std::byte> head(16);
    while (receive(head)) {
      const auto option = static_cast<std::uint32_t>(number(std::span(head).subspan(8, 4)));
      std::vector<std::byte> data(number(std::span(head).subspan(12, 4)));
      if (!receive(data)) return false;
      if (script.needs_tls && option != 5) {
        reply(client, option, kError + 5);
      } else if (option == 8 && script.structured) {
        structured_ = true;
        reply(client, option, 1);
      } else if (option == 10 && structured_ && script.extents) {
        reply(client, option, 4, Packet().put(std::uint32_t{7}).put_text("base:allocation").all());
        reply(client, option, 1);
      } else if (option == 7) {
        const std::uint64_t size = script.size_of ? script.size_of(number_) : script.size;
        const unsigned flags = 0x83U | (script.several_connections ? 0x100U : 0U);
        reply(client, option, 3, Packet().put(std::uint16_t{0}).put(size).put(static_cast<std::uint16_t>(flags)).all());
        reply(client, option, 1);
        return true;
      } else {
        reply(client, option, kError + 1);
      }
    }
    return false;
  }

  void serve() {
    Client client(fd_.get(), structured_);
    std::vector<std::byte> head(28);
    while (receive(head)) {
      const std::span<const std::byte> bytes = head;
      if (number(bytes.first(4)) != kRequestMagic) return;
      const Read read{number(bytes.subspan(8, 8)), number(bytes.subspan(16, 8)),
                      static_cast<std::uint32_t>(number(bytes.subspan(24, 4)))};
      switch (number(bytes.subspan(6, 2))) {
        case 0:
          ++server_.reads_;
          server_.script_.read ? server_.script_.read(client, read) : client.answer(read);
          break;
        case 7:
          ++server_.questions_;
          answer_question(client, read);
          break;
        default:
          return;
      }
    }
  }

  void answer_question(const Client& client, const Read& read) const {
    Packet payload;
    payload.put(std::uint32_t{7});
    for (const Extent& extent : server_.script_.extents(read)) payload.put(extent.length).put(extent.flags);
    client.send(chunk(5, read.handle, payload.all()));
  }

  FakeNbdServer& server_;
  const os::UniqueFd fd_;
  const unsigned number_;
  bool structured_ = false;
  std::thread thread_;
};

FakeNbdServer::FakeNbdServer(std::string socket, Script script)
    : socket_(std::move(socket)), script_(std::move(script)), ends_(::eventfd(0, EFD_CLOEXEC)) {
  ::unlink(socket_.c_str());
  listening_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket_.size() >= sizeof address.sun_path) std::abort();
  std::ranges::copy(socket_, address.sun_path);
  if (::bind(listening_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listening_.get(), 64) != 0)
    std::abort();
  thread_ = std::thread([this] { accept_clients(); });
}

FakeNbdServer::~FakeNbdServer() {
  const std::uint64_t one = 1;
  if (::write(ends_.get(), &one, sizeof one) != sizeof one) std::abort();
  thread_.join();
}

void FakeNbdServer::accept_clients() {
  std::list<Session> sessions;
  pollfd fds[2] = {{listening_.get(), POLLIN, 0}, {ends_.get(), POLLIN, 0}};
  while (::poll(fds, 2, -1) > 0 && (fds[1].revents & POLLIN) == 0) {
    os::UniqueFd client(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (client) sessions.emplace_back(*this, std::move(client), connections_++);
  }
}

}  // namespace uffda::test
