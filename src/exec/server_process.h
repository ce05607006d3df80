// A server of our own: `uffda serve` as a child process, whose messages pass through us.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "exec/resolved_map.h"
#include "os/fd.h"
#include "uffda/deadline.h"
#include "uffda/result.h"

namespace uffda::exec {

struct ServerSetup {
  std::vector<ResolvedMap> maps;       // what it is to serve
  std::string socket;                  // where it is to listen
  std::vector<std::string> arguments;  // further ones
};

/// Threads: one. The server ends by itself when its last watcher and the last address space that it serves are gone.
class ServerProcess {
 public:
  /// Starts a server and waits until it listens. If it ends before that, its reason has been printed, its exit status
  /// is in `exit_status`, and the Error says so.
  static Result<ServerProcess> start(const ServerSetup& setup, std::optional<int>& exit_status);

  ServerProcess(ServerProcess&&) = default;
  ServerProcess& operator=(ServerProcess&&) = default;
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;
  ~ServerProcess();  // asks it to end, if it runs

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// Its standard error, for poll; -1 after its end.
  [[nodiscard]] int messages() const { return messages_.get(); }
  /// Passes on what it printed.
  void forward_messages();
  /// Waits for its end: the wait status, or nothing if it still runs at the deadline.
  std::optional<int> wait(Deadline deadline);

 private:
  ServerProcess(pid_t pid, os::UniqueFd pidfd, os::UniqueFd messages)
      : pid_(pid), pidfd_(std::move(pidfd)), messages_(std::move(messages)) {}
  Result<void> await_ready(int ready, std::optional<int>& exit_status);

  pid_t pid_ = -1;
  os::UniqueFd pidfd_;  // -1: it has been waited for
  os::UniqueFd messages_;
  std::optional<int> status_;
};

/// "was killed by signal 9 (Killed)", "ended with status 1".
std::string describe_wait_status(int status);

}  // namespace uffda::exec
