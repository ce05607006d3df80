#include "sources/pack/codec.h"

#include <fmt/format.h>
#include <zstd.h>
#include <zstd_errors.h>

namespace uffda::pack {

void Compressor::Delete::operator()(ZSTD_CCtx_s* context) const noexcept { ZSTD_freeCCtx(context); }
void Decompressor::Delete::operator()(ZSTD_DCtx_s* context) const noexcept { ZSTD_freeDCtx(context); }

Result<Compressor> Compressor::create(int level) {
  if (level < kMinLevel || level > kMaxLevel) {
    return fail(Errc::invalid_argument, fmt::format("level {}: expected {} to {}", level, kMinLevel, kMaxLevel));
  }
  Compressor compressor;
  compressor.context_.reset(ZSTD_createCCtx());
  if (!compressor.context_) return fail(Errc::no_memory, "no memory for a compressor");
  const std::size_t set = ZSTD_CCtx_setParameter(compressor.context_.get(), ZSTD_c_compressionLevel, level);
  if (ZSTD_isError(set) != 0) return fail(Errc::invalid_argument, ZSTD_getErrorName(set));
  return compressor;
}

Result<std::size_t> Compressor::compress(std::span<const std::byte> contents, std::span<std::byte> frame) {
  const std::size_t size = ZSTD_compress2(context_.get(), frame.data(), frame.size(), contents.data(), contents.size());
  if (ZSTD_isError(size) == 0) return size;
  if (ZSTD_getErrorCode(size) == ZSTD_error_dstSize_tooSmall) return std::size_t{0};
  return fail(Errc::no_memory, fmt::format("compressing: {}", ZSTD_getErrorName(size)));
}

Result<Decompressor> Decompressor::create() {
  Decompressor decompressor;
  decompressor.context_.reset(ZSTD_createDCtx());
  if (!decompressor.context_) return fail(Errc::no_memory, "no memory for a decompressor");
  return decompressor;
}

Result<void> Decompressor::decompress(std::span<const std::byte> frame, std::span<std::byte> contents) noexcept {
  const std::size_t size =
      ZSTD_decompressDCtx(context_.get(), contents.data(), contents.size(), frame.data(), frame.size());
  if (ZSTD_isError(size) != 0) return fail(Errc::io, ZSTD_getErrorName(size));
  if (size != contents.size()) {
    return fail(Errc::io, fmt::format("{} bytes instead of {}", size, contents.size()));
  }
  return {};
}

}  // namespace uffda::pack
