// The file of a cow+ layer (docs/formats/overlay.md): what was written over a source that stays as it is.
//
//   page 0         header: which source it lies over
//   from page 1    one bit for each block of 4 KiB: it was written
//   then           one byte for each block: it was written, since the machine was started
//   then           the blocks, each where it is in the source; sparse
//
// A bit in the file says that its block is stored: flush() makes the blocks safe before it writes their bits. So after
// a loss of power each block is the one of the last flush, or a newer one. A byte is written right after its block: it
// is true for as long as the machine runs, which is what a server needs that is killed (header: of which start).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "os/fd.h"
#include "uffda/page_source.h"
#include "uffda/result.h"

namespace uffda::sources {

/// The first 64 bytes of the file; the rest of the first page is zero.
struct OverlayHeader {
  std::array<char, 8> magic{'u', 'f', 'f', 'd', 'a', 'O', 'V', 'L'};
  std::uint32_t version = 2;
  std::uint32_t block = 4096;               ///< bytes
  std::uint64_t size = 0;                   ///< of the source, in bytes
  std::array<std::uint8_t, 16> source{};    ///< hash of its version (SourceProperties); zeroes: it has none
  std::uint64_t boot = 0;                   ///< hash of the boot id of the start in which the bytes were written
  std::array<std::uint8_t, 16> checksum{};  ///< of what stands before it
  bool operator==(const OverlayHeader&) const = default;
};

/// Errors: protocol (it is none, or damaged).
Result<OverlayHeader> parse_overlay_header(std::span<const std::byte> bytes);
/// Sets its checksum.
void seal(OverlayHeader& header);
/// With its checksum.
OverlayHeader make_overlay_header(ByteCount size, std::string_view source_version);

/// Threads: any, unless said otherwise.
class OverlayFile {
 public:
  static constexpr std::uint64_t kBlock = 4096;

  /// Opens the file, or (for writing) makes it. One process at a time writes. Errors: not_found, busy (somebody has
  /// it), invalid_argument (it lies over another source, or over an older version of this one), protocol (it is none),
  /// io.
  static Result<std::unique_ptr<OverlayFile>> open(const std::string& path, const PageSource& base, OpenFor what_for);

  ~OverlayFile();
  OverlayFile(const OverlayFile&) = delete;
  OverlayFile& operator=(const OverlayFile&) = delete;

  [[nodiscard]] int fd() const { return fd_.get(); }
  /// Where the byte of the source is in the file, if it was written.
  [[nodiscard]] ByteOffset place_of(ByteOffset offset) const { return offset + ByteCount{data_}; }
  [[nodiscard]] bool has(std::uint64_t block) const {
    return (words_[block / 64].load(std::memory_order_acquire) >> block % 64 & 1U) != 0;
  }
  /// From the first block of `range` on, as many bytes of it as were written, or as were not.
  struct Run {
    ByteCount length;
    bool written = false;
  };
  [[nodiscard]] Run run_of(ByteRange range) const;
  /// The blocks of the range are in the file, all of them. Errors: io, no_memory (no space).
  Result<void> note_written(ByteRange range);
  /// Copies written blocks out. Waits for the disk. Errors: io.
  Result<void> read(ByteOffset offset, std::span<std::byte> bytes) const;
  /// Waits for the disk. Errors: io.
  Result<void> flush() UFFDA_EXCLUDES(flush_mutex_);
  /// Errors: no_memory (no space), io.
  Result<void> reserve(ByteRange range);

 private:
  OverlayFile(os::UniqueFd fd, std::string name, std::uint64_t blocks);
  Result<void> load_bits(std::uint64_t file_size);
  Result<void> load_bytes();
  /// Whether it was not set.
  bool set(std::uint64_t block);
  Result<void> begin_boot(OverlayHeader header);

  static constexpr std::uint64_t kBlocksOfPage = kBlock * 8;  // whose bits are in one page of the file

  const os::UniqueFd fd_;
  const std::string name_;
  const std::uint64_t blocks_;
  const std::uint64_t bytes_;  // where the bytes begin
  const std::uint64_t data_;   // and the blocks
  std::vector<std::atomic<std::uint64_t>> words_;
  std::vector<std::atomic<bool>> changed_;  // pages of bits
  Mutex flush_mutex_;  // one at a time, so that no older bits are written over newer ones: held across its writes
};

}  // namespace uffda::sources
