// Buffers that modules read into and publish from. A module that does not come back keeps its buffer; the core's own
// staging buffers are never in a module's hands.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::modules {

/// Page-aligned memory with a guard behind the bytes that a module may write.
class Bounce {
 public:
  ~Bounce();
  Bounce(const Bounce&) = delete;
  Bounce& operator=(const Bounce&) = delete;

  [[nodiscard]] std::span<std::byte> bytes() const { return {memory_, length_}; }
  /// Nobody wrote behind bytes().
  [[nodiscard]] bool guard_is_whole() const;

 private:
  friend class BouncePool;
  Bounce(std::byte* memory, std::size_t room) : memory_(memory), room_(room) {}
  void hand_out(std::size_t length);

  std::byte* memory_;
  std::size_t room_;  // bytes, guard not counted
  std::size_t length_ = 0;
};

/// Keeps buffers that came back, so that their pages stay resident. Threads: any.
class BouncePool {
 public:
  BouncePool() : state_(std::make_shared<State>()) {}
  /// `length` bytes; the contents are left over from before. Goes back to the pool with its last reference.
  /// Errors: no_memory.
  Result<std::shared_ptr<Bounce>> take(std::size_t length);

 private:
  static constexpr std::size_t kKept = 16;
  struct State {
    Mutex mutex;
    std::vector<std::unique_ptr<Bounce>> kept UFFDA_GUARDED_BY(mutex);
  };
  std::shared_ptr<State> state_;
};

}  // namespace uffda::modules
