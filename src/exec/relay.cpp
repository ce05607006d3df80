#include "exec/relay.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>

#include "os/socket.h"

namespace uffda::exec {

using handoff::Packet;
using handoff::Type;

namespace {

constexpr Duration kUpstream = std::chrono::seconds(35);      // longer than the server's own deadline
constexpr Duration kSyncUpstream = std::chrono::seconds(90);  // the same, and a disk's flush
constexpr int kBacklog = 128;

bool same_user(int peer) {
  const auto credentials = os::peer_of(peer);
  return credentials && (credentials->uid == ::geteuid() || credentials->uid == 0);
}

void answer_error(int peer, const Error& error) {
  // A peer that has gone needs no answer.
  [[maybe_unused]] const auto sent =
      handoff::send_message(peer, handoff::make_error_reply(error), Deadline::after(kUpstream));
}

/// Of an Attach of either kind, which begin alike.
std::uint64_t features_of(const Packet& request) {
  handoff::AttachRequest attach{};
  if (request.bytes.size() < sizeof attach) return 0;
  std::memcpy(&attach, request.bytes.data(), sizeof attach);
  return attach.features;
}

bool attaches(Type type) { return type == Type::kAttach || type == Type::kAttachAs; }

}  // namespace

Result<std::unique_ptr<Relay>> Relay::listen(const std::string& path, std::string server, KeptFaults& kept,
                                             std::function<void(const std::string&)> refused) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return fail(Errc::invalid_argument, "socket path " + path + " is too long");
  std::memcpy(address.sun_path, path.data(), path.size());
  os::UniqueFd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  os::UniqueFd stop(::eventfd(0, EFD_CLOEXEC));
  if (!listener || !stop) return fail_errno(errno, "socket");
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener.get(), kBacklog) != 0) {
    return fail_errno(errno, "listen at " + path);
  }
  return std::unique_ptr<Relay>(
      new Relay(std::move(listener), std::move(stop), std::move(server), kept, std::move(refused)));
}

Relay::Relay(os::UniqueFd listener, os::UniqueFd stop, std::string server, KeptFaults& kept,
             std::function<void(const std::string&)> refused)
    : listener_(std::move(listener)),
      stop_(std::move(stop)),
      server_(std::move(server)),
      kept_(kept),
      refused_(std::move(refused)) {
  for (unsigned i = 0; i < kWorkers; ++i) workers_.emplace_back([this] { work(); });
}

Relay::~Relay() {
  stopping_ = true;
  (void)::eventfd_write(stop_.get(), 1);
  workers_.clear();
}

bool Relay::wait_readable(int socket, Deadline deadline) {
  for (;;) {
    std::array<pollfd, 2> entries{
        {{.fd = socket, .events = POLLIN, .revents = 0}, {.fd = stop_.get(), .events = POLLIN, .revents = 0}}};
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline.when() - Clock::now()).count();
    const auto wait = std::clamp<std::int64_t>(left, 0, std::numeric_limits<int>::max());
    const int ready = ::poll(entries.data(), entries.size(), static_cast<int>(wait));
    if (ready < 0 && errno == EINTR) continue;
    return ready > 0 && entries[1].revents == 0;
  }
}

void Relay::work() {
  std::vector<std::byte> buffer(2 * std::size_t{handoff::kMaxMessage});
  while (!stopping_.load()) {
    if (!wait_readable(listener_.get(), Deadline::after(kIdle))) continue;
    const os::UniqueFd peer(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (peer && same_user(peer.get())) converse(peer.get(), buffer);
  }
}

void Relay::converse(int peer, std::span<std::byte> buffer) {
  os::UniqueFd server;
  while (wait_readable(peer, Deadline::after(kIdle)) && pass(peer, server, buffer)) {
  }
}

bool Relay::pass(int peer, os::UniqueFd& server, std::span<std::byte> buffer) {
  // The request may be needed again when the answer comes.
  auto request = handoff::receive_packet(peer, buffer.first(handoff::kMaxMessage), Deadline::after(kIdle));
  if (!request) return false;
  const Type type = request->type();
  if (type == Type::kWatch || type == Type::kRead || type == Type::kWrite) {
    answer_error(peer, Error(Errc::unsupported, "not through this socket"));
    return true;
  }
  const std::uint64_t features = attaches(type) ? features_of(*request) : 0;
  os::UniqueFd userfaultfd = std::move(request->descriptor);
  const Deadline deadline = Deadline::after(type == Type::kSync ? kSyncUpstream : kUpstream);
  const auto reply = handoff::ask_server(server, server_, request->bytes, {}, userfaultfd.get(),
                                         buffer.subspan(handoff::kMaxMessage), deadline);
  if (!reply) {
    answer_error(peer, reply.error());
    return false;
  }
  if (attaches(type) && reply->type() == type) {
    // Kept before the program hears of success: from then on it counts on never seeing a zero page.
    if (auto kept = kept_.keep(std::move(userfaultfd), features); !kept) {
      answer_error(peer, kept.error());
      return true;
    }
  }
  if (type == Type::kDevice && reply->type() == Type::kError && !said_refused_.exchange(true)) {
    refused_(handoff::read_error_reply(*reply).context());
  }
  return handoff::send_packet(peer, reply->bytes, {}, deadline, reply->descriptor.get()).has_value();
}

}  // namespace uffda::exec
