// A machine in one image: what `uffda qemu save` makes a pack of (docs/formats/machine.md).
//
//   head, 64 KiB | the blocks of RAM | state of the devices
//
// So every page of RAM is at a fixed place of a source of bytes, and any source will do.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "qemu/stream.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::qemu {

inline constexpr ByteCount kImageHead = 64_KiB;
inline constexpr ByteCount kBlockAlignment = 64_KiB;

/// A block and where its bytes are in the image.
struct PlacedBlock {
  RamBlock block;
  ByteOffset place;
  bool operator==(const PlacedBlock&) const = default;
  [[nodiscard]] ByteRange range() const { return {.start = place, .length = block.length}; }
};

struct ImageHead {
  std::string machine;
  std::vector<PlacedBlock> blocks;
  ByteRange devices;
  bool operator==(const ImageHead&) const = default;
};

/// Where the blocks go.
std::vector<PlacedBlock> place_blocks(std::span<const RamBlock> blocks);
/// The end of the last one.
ByteOffset end_of(std::span<const PlacedBlock> blocks);

/// Bytes for the start of the image: kImageHead of them. Errors: unsupported (the names take more room).
Result<std::vector<std::byte>> encode_head(const ImageHead& head);
/// `bytes` are the first kImageHead of an image of `size` bytes; every range of the result lies within it, and the
/// blocks do not overlap. Errors: invalid_argument (not such an image, another version, damaged).
Result<ImageHead> parse_head(std::span<const std::byte> bytes, ByteCount size);

}  // namespace uffda::qemu
