// What is known so far of which ranges of a remote source read as zeroes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "uffda/page_source.h"

namespace uffda::sources {

/// Extents that were heard of; what lies between them is unknown. Neighbours of one kind are one. Bounded: what does
/// not fit makes it forget everything, which costs asking again. Threads: one at a time.
class ExtentMap {
 public:
  explicit ExtentMap(std::size_t most_runs) : most_runs_(most_runs) {}

  /// Takes the place of what was known of the range. Empty ranges are ignored.
  void record(const Extent& extent);
  void clear() { runs_.clear(); }

  /// What is known from the start of `range` on, without gaps, cut to it. Empty: nothing.
  [[nodiscard]] std::vector<Extent> known(ByteRange range) const;
  [[nodiscard]] bool knows(ByteOffset offset) const;
  /// All of it is known to be zeroes.
  [[nodiscard]] bool zero(ByteRange range) const;

 private:
  struct Run {
    std::uint64_t end;
    Extent::Kind kind;
  };
  using Runs = std::map<std::uint64_t, Run>;  ///< by start; they neither overlap nor, if alike, touch

  /// The run that holds `offset`.
  [[nodiscard]] Runs::const_iterator find(std::uint64_t offset) const;
  void cut_at(std::uint64_t offset);

  std::size_t most_runs_;
  Runs runs_;
};

}  // namespace uffda::sources
