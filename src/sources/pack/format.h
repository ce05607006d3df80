// The pack format, version 1: what its bytes mean. docs/formats/pack.md is the specification.
//
//   header | stored frames | index | metadata | name of the base | working set
//
// There is no gap anywhere and every byte is under a checksum: the parts follow each other in this order, and stored
// frames lie in the order of their numbers. What is parsed here is foreign, so each field is checked before it is used,
// and no allocation is larger than the file that asks for it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "sources/pack/checksum.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::pack {

inline constexpr std::uint32_t kVersion = 1;
inline constexpr std::size_t kHeaderBytes = 256;
inline constexpr std::size_t kIndexHeadBytes = 32;
inline constexpr std::size_t kEntryBytes = 32;

inline constexpr ByteCount kMinFrame = 4_KiB;
inline constexpr ByteCount kMaxFrame = 1_MiB;
inline constexpr ByteCount kDefaultFrame = 64_KiB;
inline constexpr std::uint64_t kMaxFrames = std::uint64_t{1} << 24U;  ///< 1 TiB in frames of 64 KiB
inline constexpr ByteCount kMaxMetadata = 1_MiB;
inline constexpr ByteCount kMaxBaseName{255};
inline constexpr ByteCount kMaxWorkingSet = 256_MiB;
inline constexpr std::size_t kMaxDepth = 64;  ///< packs in a chain

/// A part of the file.
struct Section {
  ByteRange range;
  Checksum checksum;  ///< of its bytes
};

struct Header {
  ByteCount file_size;
  Section index;
  Section metadata;
  Section base_name;  ///< empty: no base
  Section working_set;
};

/// Errors: unsupported (another version), io (damaged, truncated, or not a pack; says which).
/// `file_size` is that of the file at hand. Every range of the result lies within it.
Result<Header> parse_header(std::span<const std::byte> bytes, ByteCount file_size);
std::array<std::byte, kHeaderBytes> encode_header(const Header& header);

/// Whether a section's bytes are the ones that the header names. Errors: io.
Result<void> check_section(const Section& section, std::span<const std::byte> bytes, std::string_view what);

enum class FrameKind : std::uint8_t {
  zero = 0,       ///< all zeroes, stored nowhere
  zstd = 1,       ///< stored as one zstd frame, smaller than its contents
  raw = 2,        ///< stored as it is
  duplicate = 3,  ///< the contents of an earlier frame of this pack
  base = 4,       ///< the contents of a frame of the base
};

/// One entry of the index.
struct Frame {
  std::uint64_t place = 0;   ///< zstd, raw: where it is stored in the file; duplicate, base: the other frame's number
  std::uint32_t stored = 0;  ///< zstd, raw: bytes stored
  FrameKind kind = FrameKind::zero;
  Checksum checksum;  ///< of the contents; of a zero frame: zeroes

  [[nodiscard]] bool is_stored() const { return kind == FrameKind::zstd || kind == FrameKind::raw; }
};

/// The table of frames. Its checksum is the pack's identity: it covers the checksum of every frame and of the base.
class Index {
 public:
  /// Takes the section's bytes. Everything about the entries is checked that can be without the base.
  /// Errors: io (says what is wrong with which frame).
  static Result<Index> parse(std::vector<std::byte> bytes, const Header& header);

  [[nodiscard]] ByteCount size() const { return size_; }  ///< of the contents
  [[nodiscard]] ByteCount frame_size() const { return frame_size_; }
  [[nodiscard]] std::uint64_t frames() const { return (bytes_.size() - kIndexHeadBytes) / kEntryBytes; }
  [[nodiscard]] const Checksum& base() const { return base_; }  ///< the base's identity; zero: no base
  [[nodiscard]] const Checksum& identity() const { return identity_; }
  /// Requires: number < frames().
  [[nodiscard]] Frame frame(std::uint64_t number) const;
  /// What of the contents frame `number` holds: frame_size() bytes but for the last frame.
  [[nodiscard]] ByteRange range(std::uint64_t number) const;

 private:
  [[nodiscard]] Result<void> check(const Header& header) const;
  [[nodiscard]] const char* wrong(const Frame& frame, std::uint64_t number, std::uint64_t next_place) const;

  std::vector<std::byte> bytes_;
  ByteCount size_;
  ByteCount frame_size_;
  Checksum base_;
  Checksum identity_;
};

/// What the index of a new pack is made of. Frames are added in order.
class IndexBuilder {
 public:
  IndexBuilder(ByteCount size, ByteCount frame_size, const Checksum& base);
  void add(const Frame& frame);
  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

/// Lines KEY=VALUE, in the order of their keys. Keys are [A-Za-z0-9._-]+, values have no control characters.
using Metadata = std::map<std::string, std::string>;
/// Errors: invalid_argument (a bad key or value, too much).
Result<std::string> encode_metadata(const Metadata& metadata);
/// Errors: io.
Result<Metadata> parse_metadata(std::string_view text);

/// Whether this may be the name of a base: a file name, nothing that leads to another directory.
bool valid_base_name(std::string_view name);

}  // namespace uffda::pack
