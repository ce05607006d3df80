// One zstd frame at a time: the errors of libzstd as values.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "uffda/result.h"

struct ZSTD_CCtx_s;
struct ZSTD_DCtx_s;

namespace uffda::pack {

inline constexpr int kMinLevel = 1;
inline constexpr int kMaxLevel = 19;

/// Threads: one at a time.
class Compressor {
 public:
  /// Errors: invalid_argument (the level), no_memory.
  static Result<Compressor> create(int level);

  /// The size of the frame that was written to `frame`; 0 if it is too small for it. Errors: no_memory.
  /// The same contents always give the same frame.
  Result<std::size_t> compress(std::span<const std::byte> contents, std::span<std::byte> frame);

 private:
  struct Delete {
    void operator()(ZSTD_CCtx_s* context) const noexcept;
  };
  std::unique_ptr<ZSTD_CCtx_s, Delete> context_;
};

/// Threads: one at a time.
class Decompressor {
 public:
  /// Errors: no_memory.
  static Result<Decompressor> create();

  /// Fills `contents` from a frame of exactly that many bytes. Errors: io (words of libzstd); then `contents` is
  /// anything. Allocates only for the words.
  Result<void> decompress(std::span<const std::byte> frame, std::span<std::byte> contents) noexcept;

 private:
  struct Delete {
    void operator()(ZSTD_DCtx_s* context) const noexcept;
  };
  std::unique_ptr<ZSTD_DCtx_s, Delete> context_;
};

}  // namespace uffda::pack
