// One connection of an NBD source, with the thread that owns it. It takes requests, sends them, and connects again when
// it is lost, as long as the source lives.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "os/fd.h"
#include "plugins/nbd/requests.h"
#include "plugins/nbd/session.h"

namespace uffda::nbd {

class Connection;

/// The connections of one source, and who is to be woken for what.
class Fleet {
 public:
  Fleet(sources::NbdAddress address, RequestTable& requests);
  ~Fleet();  ///< requests were closed before
  Fleet(const Fleet&) = delete;
  Fleet& operator=(const Fleet&) = delete;

  /// `first` and as many others as it takes to have `count`; those connect by themselves.
  Result<void> start(Session first, unsigned count);

  /// Something waits: the next connection that is ready shall look. Threads: any.
  void wake_one();
  void wake_all();

 private:
  friend class Connection;
  const sources::NbdAddress address_;
  RequestTable& requests_;
  ByteCount size_;
  std::atomic<unsigned> ready_{0};
  std::atomic<unsigned> turn_{0};
  std::vector<std::unique_ptr<Connection>> connections_;  // constant after start
};

class Connection {
 public:
  Connection(Fleet& fleet, std::optional<Session> session);
  ~Connection() = default;  ///< joined before
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  Result<void> start();
  /// The thread shall end; join waits for that.
  void stop();
  void join();
  void wake() noexcept;
  [[nodiscard]] bool ready() const { return ready_.load(std::memory_order_relaxed); }

 private:
  void run() noexcept;
  /// Connects, or waits for the time to try. False: it is not worth it.
  bool connect_again();
  void adopt(Session session);
  void serve();
  void send_what_waits();
  void send(Request& request);
  void send_read(Request& request);
  void send_write(Request& request);
  void send_flush(Request& request);
  void send_status(Request& request);
  /// False: there was none.
  bool settle_answered();
  /// Closes the connection; what it has not answered is sent again.
  void lose(std::string why);
  void pause(TimePoint until);
  void heard_wake() noexcept;

  Fleet& fleet_;
  RequestTable& requests_;
  os::UniqueFd wake_fd_;
  std::atomic<bool> woken_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> ready_{false};
  std::thread thread_;

  // The thread's own.
  std::optional<Session> session_;
  std::vector<Request*> sent_;
  std::vector<Request*> taken_;
  unsigned attempts_ = 0;  ///< in a row that came to nothing
  bool useful_ = false;    ///< this connection has answered something
  bool was_ready_ = false;
  TimePoint retry_at_{};
};

}  // namespace uffda::nbd
