// Filling memory in the background: all of it, or what an earlier run was seen to touch. Faults come first: a fill uses
// what faults and read-ahead leave of requests, buffers and the source's parallelism.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "uffda/deadline.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

/// What a fill came to.
enum class FillEnd : std::uint8_t {
  running,
  complete,     ///< everything was fetched, or asked for and could not be had (FillProgress::left)
  stopped,      ///< by its owner
  memory,       ///< the budget is near: more would evict what is there
  evicted,      ///< what was prefetched was evicted unread
  useless,      ///< what is touched is not what was recorded
  unsupported,  ///< a memory type without a page cache; or a monitor resolves its faults
};
[[nodiscard]] std::string_view to_string(FillEnd end) noexcept;

/// At one moment.
struct FillProgress {
  FillEnd end = FillEnd::running;
  ByteCount wanted;   ///< of all that is to be there
  ByteCount done;     ///< of it: dealt with
  ByteCount zero;     ///< of `done`: skipped, for the source says that it reads as zeroes
  ByteCount fetched;  ///< asked of the source by this fill
  ByteCount left;     ///< known at the end: what could not be had; a touch asks again
  ByteCount hit;      ///< prefetching a recording: of `fetched`, touched later
  ByteCount wasted;   ///< the same: of `fetched`, evicted before anybody touched it
};

/// A fill under way. It stops when the last handle goes. Threads: any.
class BackgroundFill {
 public:
  class Impl;
  explicit BackgroundFill(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

  [[nodiscard]] FillProgress progress() const;
  /// Waits for its end. Errors: timed_out.
  Result<FillProgress> wait(Deadline deadline) const;
  /// Asks for no more. What is under way still arrives.
  void stop() const;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace uffda
