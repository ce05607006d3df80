// A line on a terminal that says how far long work is.
#pragma once

#include <atomic>
#include <string>

#include "uffda/deadline.h"
#include "uffda/units.h"

namespace uffda::cli {

/// Shown on standard error if that is a terminal; gone when this goes.
class ProgressLine {
 public:
  explicit ProgressLine(std::string what);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  /// Threads: one.
  void show(ByteCount done, ByteCount size);

 private:
  std::string what_;
  bool on_terminal_;
  bool shown_ = false;
  TimePoint start_;
  TimePoint next_;
};

/// While it exists SIGINT and SIGTERM do not end the process but set a flag. One at a time.
class Interruptible {
 public:
  Interruptible();
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;
  [[nodiscard]] static const std::atomic<bool>& flag();
  /// The exit status of a process that was interrupted so; 0 if it was not.
  [[nodiscard]] static int status();
};

}  // namespace uffda::cli
