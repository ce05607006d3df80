// Conformance scripts: what a monitor, threads that touch memory, and the program around them do, step by step.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "conformance/world.h"

namespace uffda::conformance {

enum class Op : std::uint8_t {
  register_range,
  unregister_range,
  read,   ///< thread `thread` loads from `page`
  write,  ///< and stores `value`
  copy,
  zeropage,
  continue_,
  poison,
  move,
  writeprotect,
  wake,
  other_read,  ///< through the second mapping
  other_write,
  dontneed,  ///< madvise
  remove,    ///< madvise(MADV_REMOVE) through the second mapping: punches the hole
  remap,     ///< mremap of everything to another place
  replace,   ///< the range is mapped anew, as nothing
};
inline constexpr int kOps = 17;
std::string_view to_string(Op op);

inline constexpr int kThreads = 3;

struct Step {
  Op op;
  std::int64_t page = 0;
  std::int64_t count = 1;
  std::int64_t from = 0;    ///< MOVE: page of the source; COPY: 1 unreadable, 2 unaligned, 3 the second page unreadable
  std::int64_t skew = 0;    ///< bytes by which the start is off
  std::uint64_t modes = 0;  ///< REGISTER
  ResolveFlags flags{};
  std::uint8_t value = 0;
  int thread = 0;
};
using Script = std::vector<Step>;

std::string to_string(const Step& step);

Script random_script(std::uint64_t seed);

/// Runs it in a world; what happened, a line for each result, message and outcome of a touch.
std::vector<std::string> run(const Script& script, World& world);

/// What was seen in each world, if it is not the same.
struct Difference {
  std::vector<std::string> kernel;
  std::vector<std::string> uffda;
};
std::optional<Difference> difference(const Script& script, const Kind& kind);
/// Both side by side; ! marks where they differ.
std::string show(const std::optional<Difference>& found);

}  // namespace uffda::conformance
