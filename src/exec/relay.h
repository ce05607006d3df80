// Stands between the shims of a program's processes and the server: passes packets both ways, and keeps a copy of every
// userfaultfd.
//
// The shim makes one short connection for each operation; a few workers take them in turn. A peer that stays silent is
// disconnected after kIdle, so that it holds up its own program only, and only that long.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "exec/kept_faults.h"
#include "os/fd.h"
#include "server/packet.h"

namespace uffda::exec {

class Relay {
 public:
  /// Listens at `path`, for processes of this user. `refused` hears the text of the server's first refusal to lend out
  /// its userfaultfd device, on a thread of the relay. `kept` outlives the relay.
  static Result<std::unique_ptr<Relay>> listen(const std::string& path, std::string server, KeptFaults& kept,
                                               std::function<void(const std::string&)> refused);
  ~Relay();
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

 private:
  static constexpr unsigned kWorkers = 24;
  static constexpr Duration kIdle = std::chrono::seconds(40);

  Relay(os::UniqueFd listener, os::UniqueFd stop, std::string server, KeptFaults& kept,
        std::function<void(const std::string&)> refused);

  void work();
  void converse(int peer, std::span<std::byte> buffer);
  /// One request and its answer. False: the conversation is over.
  bool pass(int peer, os::UniqueFd& server, std::span<std::byte> buffer);
  /// Waits until `socket` is readable; false after `deadline` or at the relay's end.
  bool wait_readable(int socket, Deadline deadline);

  os::UniqueFd listener_;
  os::UniqueFd stop_;  // eventfd
  const std::string server_;
  KeptFaults& kept_;
  const std::function<void(const std::string&)> refused_;
  std::atomic<bool> said_refused_ = false;
  std::atomic<bool> stopping_ = false;
  std::vector<std::jthread> workers_;
};

}  // namespace uffda::exec
