// Conformance scripts: what a monitor, threads that touch memory, and the program around them do, step by step.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
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
  fork,      ///< a child that ends at once
  scan,      ///< for written pages; with flag wp they are protected again
};
inline constexpr int kOps = 19;
std::string_view to_string(Op op);

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
  std::vector<std::string> other;
};
/// Runs a script where it is compared with the kernel, and says what was seen.
using RunOther = std::function<std::vector<std::string>(const Script&, const Kind&)>;
/// On uffda's userfaultfd.
std::vector<std::string> run_uffda(const Script& script, const Kind& kind);
std::optional<Difference> difference(const Script& script, const Kind& kind, const RunOther& other);
/// A script that still differs, and of which every step is needed.
Script shrink(Script script, const Kind& kind, const RunOther& other);
/// Both side by side; ! marks where they differ. `name` of the other.
std::string show(const std::optional<Difference>& found, const std::string& name);
/// Random scripts, a seed each. What differs, shrunk, for up to three of them; empty if nothing does.
std::vector<std::string> compare(std::uint64_t first_seed, std::uint64_t count, const Kind& kind, const RunOther& other,
                                 const std::string& name);
/// A number that the environment sets, or `otherwise`.
std::uint64_t setting(const char* name, std::uint64_t otherwise);

}  // namespace uffda::conformance
