// A pack with the packs that it builds on, opened and checked against each other.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sources/pack/blocking_reader.h"
#include "sources/pack/codec.h"
#include "sources/pack/format.h"
#include "uffda/page_source.h"

namespace uffda::pack {

/// How long opening waits for one read.
inline constexpr std::chrono::seconds kOpenTimeout{30};

/// An open pack, without its base.
struct Pack {
  std::unique_ptr<PageSource> source;  ///< of the file's bytes
  std::string name;
  Header header;
  Index index;
  Metadata metadata;
  std::string base_name;  ///< empty: no base
};

/// Reads and checks everything but the frames and the working set. Waits.
/// Errors: those of the source; io (damaged, not a pack), unsupported (another version).
Result<Pack> open_pack(std::unique_ptr<PageSource> source);

/// The working set as it was stored; empty: none. Waits. Errors: those of the source; io (damaged).
Result<std::vector<std::byte>> read_working_set(const Pack& pack);

/// Where the contents of a frame come from.
struct Place {
  std::size_t pack = 0;  ///< of the chain
  Frame frame;           ///< zero, zstd or raw, of that pack
};

/// A pack and its bases. The first is the one that was asked for. Constant after it was opened.
class Chain {
 public:
  /// Opens the base that `pack` names. `depth` counts from 0.
  using OpenBase = std::function<Result<std::unique_ptr<PageSource>>(const Pack& pack, std::size_t depth)>;

  /// Errors: as open_pack; io (the base is another pack than the one that it was made from; a loop); out_of_range
  /// (more than kMaxDepth packs); those of `open_base`.
  static Result<Chain> open(std::unique_ptr<PageSource> top, const OpenBase& open_base);

  [[nodiscard]] const std::vector<Pack>& packs() const { return packs_; }
  [[nodiscard]] const Index& index() const { return packs_.front().index; }
  /// Follows duplicates and bases. Requires: number < index().frames().
  [[nodiscard]] Place locate(std::uint64_t number) const;
  /// Gives back the sources of the packs, for the destructor of who reads them.
  void close_sources();

 private:
  std::vector<Pack> packs_;
};

/// Unpacks `stored` into `contents` and checks what came out. Errors: io: "frame 3, bytes 12288 to 16384: is damaged".
/// Requires: the place is not of zeroes, and sizes are those of the frame.
Result<void> unpack_frame(const Frame& frame, std::span<const std::byte> stored, std::span<std::byte> contents,
                          Decompressor& decompressor) noexcept;
/// Names pack, frame and offset in front of why that frame cannot be had.
Error frame_error(const Chain& chain, std::uint64_t number, const Error& why);

/// Reads frames and waits for them. Threads: one at a time; one for each thread. The chain outlives it.
class FrameReader {
 public:
  static Result<FrameReader> create(const Chain& chain);
  /// Requires: `contents` has the frame's length. Errors: those of the sources; io (damaged). Each names pack, frame
  /// and offset.
  Result<void> read(std::uint64_t number, std::span<std::byte> contents);

 private:
  FrameReader(const Chain& chain, Decompressor decompressor);
  Result<void> read_stored(const Place& place, std::span<std::byte> contents);

  const Chain* chain_;
  Decompressor decompressor_;
  std::vector<BlockingReader> readers_;  ///< one for each pack
  std::vector<std::byte> stored_;
};

}  // namespace uffda::pack
