// Reads of a source for code that may wait: opening, packing, verifying. Never on the path of a fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "uffda/page_source.h"

namespace uffda::pack {

/// Bytes, the most that a source of a pack may have for a block.
inline constexpr std::uint64_t kMaxBlock = 4096;

/// Threads: one at a time; one for each thread. The source outlives it.
class BlockingReader {
 public:
  /// A read that is not answered within `timeout` fails.
  BlockingReader(PageSource& source, Duration timeout);
  BlockingReader(BlockingReader&&) noexcept;
  BlockingReader& operator=(BlockingReader&&) = delete;
  BlockingReader(const BlockingReader&) = delete;
  BlockingReader& operator=(const BlockingReader&) = delete;
  ~BlockingReader();

  /// Fills `out`. Any range within the source. Errors: the source's, io (a short read), timed_out.
  Result<void> read(ByteOffset offset, std::span<std::byte> out);

 private:
  struct Pending;

  Result<void> read_piece(ByteRange blocks);

  PageSource* source_;
  Duration timeout_;
  std::shared_ptr<Pending> pending_;
};

}  // namespace uffda::pack
