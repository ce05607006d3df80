// The server: a listening socket for each protocol, and a thread for each connection.
//
//   run() accepts, refuses whom it must, collects ended connections and decides when to end;
//   each connection's thread receives one request at a time, has its Session answer it, and sends the answer. That of
//   Firecracker takes what its VM hands over (server/firecracker.h), and ends.
//
// A connection that is idle costs a thread asleep in the kernel and nothing else. One that is slow to take its answers
// holds up only itself, and not longer than kSendWait. The end of a connection is not the end of an address space
// (AddressSpaces).
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "os/fd.h"
#include "server/listener.h"
#include "server/serve.h"
#include "server/service.h"
#include "uffda/result.h"

namespace uffda {

class Server {
 public:
  /// Opens the exports and listens: clients can connect from now on, and are answered once run() runs.
  /// Errors: invalid_argument (an option), busy (a server listens at that path), and what opening a source said.
  static Result<std::unique_ptr<Server>> create(const ServeOptions& options, Held* held = nullptr);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// Serves until stop(), until `stop_fd` (unless -1) is readable, or, with until_idle, until nobody is left. Once.
  /// Returns how many address spaces were still attached.
  std::size_t run(int stop_fd = -1);
  /// Ends run(). Threads: any.
  void stop();

  [[nodiscard]] Service& service() { return *service_; }
  /// What was counted, as JSON. Threads: any.
  [[nodiscard]] std::string report() const;

 private:
  struct Connection {
    os::UniqueFd socket;
    Protocol protocol;
    std::atomic<bool> done{false};
    std::thread thread;
  };
  /// A connection that was refused: kept a moment, so that the reason is read before the end is seen.
  struct Refused {
    os::UniqueFd socket;
    TimePoint until;
  };

  Server(ServeOptions options, std::vector<Listener> listeners, os::UniqueFd changed, Held* held)
      : options_(std::move(options)), listeners_(std::move(listeners)), changed_(std::move(changed)), held_(held) {}

  void notify();
  bool wait_for_something(int stop_fd);
  /// Not while there is no room for those who, refused, would never come again: they wait in the queue.
  [[nodiscard]] bool takes_from(const Listener& listener) const;
  void accept_all(const Listener& listener);
  void accept_one(const Listener& listener, Listener::Accepted peer);
  /// Serves the connection on a thread of its own, or refuses it.
  void start(Protocol protocol, os::UniqueFd socket);
  /// Connections that a dead server had accepted, and did not answer.
  void adopt_unanswered();
  void refuse(Protocol protocol, os::UniqueFd socket, const Error& error);
  void collect_ended();
  void collect_refused();
  [[nodiscard]] bool idle() const;
  void close_all();

  void serve(Connection& connection);
  void serve_requests(int socket);
  bool exchange(int socket, std::span<std::byte> buffer, Session& session);
  bool send(int socket, Session& session, Answer answer);
  /// Somebody ends us who keeps what the holder has for our next start.
  [[noreturn]] void end_for_the_store();
  /// Ends this process; or changes the answer, if that cannot be.
  void hand_over(int socket, Session& session, Answer& answer);

  const ServeOptions options_;
  std::vector<Listener> listeners_;
  os::UniqueFd changed_;  // eventfd: something that run() should look at
  Held* const held_;      // null: nothing outlives this server
  std::atomic<bool> stopping_{false};
  std::unique_ptr<Service> service_;

  // run()'s own:
  std::list<std::unique_ptr<Connection>> connections_;
  std::vector<Refused> refused_;
  TimePoint accept_again_;  // descriptors ran out: not before
  std::uint64_t refusals_ = 0;
  TimePoint report_refusals_at_;
};

}  // namespace uffda
