// Real servers for tests: started by the test that needs them, stopped by it.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "uffda/deadline.h"
#include "uffda/result.h"

namespace uffda::test {

/// A child process. Killed and reaped when it goes, and by the kernel if this process dies first.
class ChildProcess {
 public:
  /// Runs `arguments` (the first is looked up in PATH), both outputs into `log` (empty: thrown away).
  /// Errors: not_found (no such program).
  static Result<ChildProcess> start(const std::vector<std::string>& arguments, const std::string& log = {});
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess();

  [[nodiscard]] pid_t pid() const { return pid_; }
  void signal(int number) const;
  /// Kills it and waits for its end.
  void kill();
  /// Its exit status; 128 + N if signal N ended it. Errors: timed_out.
  Result<int> wait(Deadline deadline);

 private:
  explicit ChildProcess(pid_t pid) : pid_(pid) {}
  pid_t pid_;
};

/// Waits until somebody listens on a UNIX socket, or on a TCP port of loopback. Errors: timed_out.
Result<void> wait_for_socket(const std::string& path, Deadline deadline);
Result<void> wait_for_port(int port, Deadline deadline);
/// A TCP port of loopback that was free a moment ago.
int free_port();

}  // namespace uffda::test
