// What a server's process needs before it serves.
#pragma once

#include <csignal>
#include <utility>

#include "os/fd.h"
#include "uffda/result.h"

namespace uffda {

/// SIGTERM and SIGINT come by a descriptor, as long as this lives. Threads that are started meanwhile do not get them
/// either.
class EndSignals {
 public:
  static Result<EndSignals> create();
  EndSignals(EndSignals&&) = default;
  EndSignals& operator=(EndSignals&&) = delete;
  EndSignals(const EndSignals&) = delete;
  EndSignals& operator=(const EndSignals&) = delete;
  ~EndSignals() = default;

  [[nodiscard]] int fd() const { return fd_.get(); }
  /// The signal that came first is used up; from now on signals do what they did before.
  void take_and_restore();
  /// The signal that came first is used up. False: none came.
  bool take();

 private:
  EndSignals(os::UniqueFd fd, const sigset_t& before) : fd_(std::move(fd)), before_(before) {}

  os::UniqueFd fd_;
  sigset_t before_;
};

/// Every client needs several descriptors, and the usual soft limit of 1024 is there for select() alone.
void raise_descriptor_limit();

}  // namespace uffda
