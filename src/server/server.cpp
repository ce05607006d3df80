#include "server/server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <limits>
#include <system_error>
#include <utility>

#include "base/log.h"
#include "os/socket.h"
#include "server/fd_store.h"
#include "server/firecracker.h"
#include "server/packet.h"
#include "server/session.h"

namespace uffda {
namespace {

constexpr Duration kSendWait = std::chrono::seconds(10);    // for a client to take its answer
constexpr Duration kIdleWait = std::chrono::hours(24);      // between looks at a connection on which nothing happens
constexpr Duration kRefusedWait = std::chrono::seconds(1);  // for a refused client to read why
constexpr Duration kNoDescriptors = std::chrono::milliseconds(200);  // before accepting is tried again
constexpr Duration kReportRefusals = std::chrono::seconds(10);       // whoever is refused does not get to fill the log
constexpr std::size_t kMaxRefused = 32;
constexpr std::size_t kMaxReport = std::size_t{16} << 20U;

int poll_milliseconds(TimePoint until) {
  if (until == TimePoint::max()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, std::numeric_limits<int>::max()));
}

Result<Listener> new_listener(Protocol protocol, const std::string& path, const ServeOptions& options) {
  const auto passed = std::ranges::find(options.passed, protocol, &PassedSocket::protocol);
  if (passed == options.passed.end()) return Listener::create(protocol, path, options.allow_uids);
  os::UniqueFd socket(::fcntl(passed->fd, F_DUPFD_CLOEXEC, 0));
  if (!socket || ::fcntl(socket.get(), F_SETFL, O_NONBLOCK) != 0)
    return fail_errno(errno, fmt::format("the socket that was passed as '{}'", to_string(protocol)));
  return Listener::adopt(protocol, std::move(socket), path, options.allow_uids);
}

Result<Listener> listen_at(Protocol protocol, const std::string& path, const ServeOptions& options, Held* held) {
  const auto make = [&] { return new_listener(protocol, path, options); };
  return held == nullptr ? make() : held->listen(protocol, path, options.allow_uids, make);
}

Result<std::vector<Listener>> listen(const ServeOptions& options, Held* held) {
  std::vector<Listener> all;
  if (!options.socket_path.empty())
    all.push_back(UFFDA_TRY(listen_at(Protocol::handoff, options.socket_path, options, held)));
  if (!options.firecracker_path.empty() && options.exports.size() > 1)
    return fail(Errc::invalid_argument, "a server of Firecracker's VMs has one export");
  if (!options.firecracker_path.empty())
    all.push_back(UFFDA_TRY(listen_at(Protocol::firecracker, options.firecracker_path, options, held)));
  if (all.empty() && !options.attachment) return fail(Errc::invalid_argument, "nowhere to listen");
  return all;
}

}  // namespace

Result<std::unique_ptr<Server>> Server::create(const ServeOptions& options, Held* held) {
  os::UniqueFd changed(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!changed) return fail_errno(errno, "eventfd");
  std::vector<Listener> listeners = UFFDA_TRY(listen(options, held));
  std::unique_ptr<Server> server(new Server(options, std::move(listeners), std::move(changed), held));
  server->service_ = UFFDA_TRY(Service::create(options, [raw = server.get()] { raw->notify(); }, held));
  if (options.passed.empty())
    for (Listener& listener : server->listeners_) listener.own_path();
  return server;
}

Server::~Server() {
  stop();
  close_all();
}

void Server::stop() {
  stopping_.store(true, std::memory_order_release);
  notify();
}

void Server::notify() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(changed_.get(), &one, sizeof one);  // full is as good as written
}

std::string Server::report() const { return service_->report(kMaxReport); }

std::size_t Server::run(int stop_fd) {
  adopt_unanswered();
  while (!stopping_.load(std::memory_order_acquire) && !idle()) {
    if (wait_for_something(stop_fd)) {
      if (held_ != nullptr && fd_store_there()) end_for_the_store();
      break;
    }
    collect_ended();
    collect_refused();
    for (const Listener& listener : listeners_) accept_all(listener);
  }
  service_->address_spaces().reap();
  const std::size_t left = service_->address_spaces().count();
  close_all();
  return left;
}

bool Server::wait_for_something(int stop_fd) {
  TimePoint until = TimePoint::max();
  std::vector<pollfd> entries{{.fd = changed_.get(), .events = POLLIN, .revents = 0},
                              {.fd = stop_fd, .events = POLLIN, .revents = 0}};
  if (accept_again_ > Clock::now()) {
    until = accept_again_;
  } else {
    for (const Listener& listener : listeners_)
      if (takes_from(listener)) entries.push_back({.fd = listener.fd(), .events = POLLIN, .revents = 0});
  }
  for (const Refused& refused : refused_) {
    entries.push_back({.fd = refused.socket.get(), .events = POLLIN, .revents = 0});
    until = std::min(until, refused.until);
  }
  (void)::poll(entries.data(), entries.size(), poll_milliseconds(until));
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t size = ::read(changed_.get(), &count, sizeof count);
  return entries[1].revents != 0;
}

bool Server::takes_from(const Listener& listener) const {
  return listener.protocol() == Protocol::handoff || connections_.size() < options_.max_connections;
}

void Server::accept_all(const Listener& listener) {
  while (takes_from(listener)) {
    auto accepted = listener.accept();
    if (accepted) {
      accept_one(listener, std::move(*accepted));
      continue;
    }
    if (accepted.error().code() == Errc::no_memory) {
      log(LogLevel::warning, "no descriptor left for another connection: it waits");
      accept_again_ = Clock::now() + kNoDescriptors;
    }
    return;
  }
}

void Server::accept_one(const Listener& listener, Listener::Accepted peer) {
  if (auto allowed = listener.allows(peer); !allowed)
    return refuse(listener.protocol(), std::move(peer.socket), allowed.error());
  start(listener.protocol(), std::move(peer.socket));
}

void Server::start(Protocol protocol, os::UniqueFd socket) {
  if (connections_.size() >= options_.max_connections) {
    refuse(protocol, std::move(socket),
           Error(Errc::no_memory, fmt::format("{} connections are this server's limit", options_.max_connections)));
    return;
  }
  auto connection = std::make_unique<Connection>();
  connection->socket = std::move(socket);
  connection->protocol = protocol;
  try {
    connection->thread = std::thread([this, raw = connection.get()] { serve(*raw); });
  } catch (const std::system_error& error) {
    refuse(protocol, std::move(connection->socket),
           Error::from_errno(error.code().value(), "a thread for the connection"));
    return;
  }
  connections_.push_back(std::move(connection));
  service_->count_connections(connections_.size());
}

void Server::adopt_unanswered() {
  if (held_ == nullptr) return;
  for (const int fd : held_->state()->unanswered(Protocol::firecracker)) start(Protocol::firecracker, os::UniqueFd(fd));
}

void Server::refuse(Protocol protocol, os::UniqueFd socket, const Error& error) {
  ++refusals_;
  if (Clock::now() >= report_refusals_at_) {
    log(LogLevel::warning, "a connection was refused ({} so far): {}", refusals_, error.message());
    report_refusals_at_ = Clock::now() + kReportRefusals;
  }
  if (protocol != Protocol::handoff) return;  // who reads no answers
  if (!handoff::send_message(socket.get(), handoff::make_error_reply(error), Deadline::at({}))) return;
  if (refused_.size() >= kMaxRefused) refused_.erase(refused_.begin());
  refused_.push_back({.socket = std::move(socket), .until = Clock::now() + kRefusedWait});
}

void Server::collect_refused() {
  std::erase_if(refused_, [now = Clock::now()](const Refused& refused) {
    std::array<std::byte, 1024> nowhere;
    // What it asked is taken out of the queue: closing over unread bytes would destroy the answer on its way.
    const ssize_t size = ::recv(refused.socket.get(), nowhere.data(), nowhere.size(), MSG_DONTWAIT);
    return size >= 0 || errno != EAGAIN || refused.until <= now;
  });
}

void Server::collect_ended() {
  const auto ended = [](const std::unique_ptr<Connection>& connection) {
    if (!connection->done.load(std::memory_order_acquire)) return false;
    connection->thread.join();
    return true;
  };
  if (std::erase_if(connections_, ended) != 0) service_->count_connections(connections_.size());
}

bool Server::idle() const {
  if (!options_.until_idle || (!service_->watchers().any_ever() && !options_.attachment)) return false;
  if (service_->watchers().count() != 0) return false;
  service_->address_spaces().reap();  // the dead are found once a second; who waits for our end need not
  return service_->address_spaces().count() == 0;
}

void Server::close_all() {
  if (service_) service_->stop();
  for (const auto& connection : connections_) ::shutdown(connection->socket.get(), SHUT_RDWR);
  for (const auto& connection : connections_) connection->thread.join();
  connections_.clear();
  refused_.clear();
}

void Server::serve(Connection& connection) {
  const int socket = connection.socket.get();
  if (connection.protocol == Protocol::handoff) {
    serve_requests(socket);
  } else {
    const std::shared_ptr<KeptState> kept = held_ != nullptr ? held_->state() : nullptr;
    if (const auto taken = firecracker::take_vm(*service_, kept.get(), socket); !taken)
      log(LogLevel::error, "a VM at {} is not served, and waits: {}", options_.firecracker_path,
          taken.error().message());
  }
  connection.done.store(true, std::memory_order_release);
  notify();
}

void Server::serve_requests(int socket) {
  const auto buffer = std::make_unique_for_overwrite<std::array<std::byte, Session::kMaxRequest>>();
  Session session(*service_, socket);
  while (exchange(socket, *buffer, session)) {
  }
  // Before anybody reuses the descriptor's number; and the peer sees the end at once, not when run() comes by.
  const bool watched = service_->watchers().remove(socket);
  ::shutdown(socket, SHUT_RDWR);
  // Who watched is often who waited for the clients' end: with until_idle the server ends now and not a second later.
  if (watched) service_->address_spaces().reap();
}

bool Server::exchange(int socket, std::span<std::byte> buffer, Session& session) {
  auto packet = handoff::receive_packet(socket, buffer, Deadline::after(kIdleWait));
  if (packet) return send(socket, session, session.handle(std::move(*packet)));
  if (packet.error().code() == Errc::timed_out) return true;
  if (packet.error().code() != Errc::gone) (void)send(socket, session, session.refuse(packet.error()));
  return false;
}

bool Server::send(int socket, Session& session, Answer answer) {
  if (answer.then == Answer::Then::watch) {
    const auto added = service_->watchers().add(socket, answer.head);
    if (added) return true;
    answer = session.refuse(added.error());
  }
  if (answer.then == Answer::Then::hand_over) hand_over(socket, session, answer);
  const auto sent =
      handoff::send_packet(socket, answer.head, answer.tail, Deadline::after(kSendWait), answer.passed.get());
  return sent && answer.then == Answer::Then::go_on;
}

void Server::end_for_the_store() {
  if (const auto stored = service_->prepare_takeover(); !stored) log(LogLevel::warning, "{}", stored.error().message());
  ::_exit(kHandOver);
}

void Server::hand_over(int socket, Session& session, Answer& answer) {
  const auto peer = os::peer_of(socket);
  if (!peer || (peer->uid != ::geteuid() && peer->uid != 0)) {
    answer = session.refuse(Error(Errc::permission_denied, "only the user of this server takes it over"));
    return;
  }
  held_->state()->set_taker(socket);
  // What happens from here on is the holder's: this process ends as if it were killed.
  if (handoff::send_packet(socket, answer.head, {}, Deadline::after(kSendWait))) ::_exit(kHandOver);
  held_->state()->set_taker(-1);
}

}  // namespace uffda
