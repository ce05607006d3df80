// What is done with whole packs: unpacking and verifying, on all CPUs.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "sources/pack/chain.h"

namespace uffda::pack {

struct ToolOptions {
  std::function<void(ByteCount done, ByteCount size)>
      progress;                               ///< in the calling thread, from time to time; may be null
  const std::atomic<bool>* cancel = nullptr;  ///< set: give up; may be null
};

/// Writes the contents to the file `path`, which appears when it is whole. Pages of zeroes become holes.
/// Errors: those of the sources; io (damaged; nothing is written then), no_memory (no room), cancelled.
Result<void> unpack(const Chain& chain, const std::string& path, const ToolOptions& options);

/// Reads every frame, through the chain, and the working set. What cannot be had or is damaged, in order; at most
/// kMaxDamages of them. The tables were checked when the chain was opened. Errors: cancelled, no_memory.
Result<std::vector<Error>> verify(const Chain& chain, const ToolOptions& options);
inline constexpr std::size_t kMaxDamages = 1000;

}  // namespace uffda::pack
