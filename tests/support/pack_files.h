// Packs for tests: made from bytes in memory, broken on purpose, opened from bytes in memory.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sources/pack/writer.h"
#include "uffda/page_source.h"

namespace uffda::test {

using Bytes = std::vector<std::byte>;

/// A source of bytes in memory that answers in the calling thread, and counts what was read.
std::unique_ptr<PageSource> bytes_source(Bytes bytes, std::string name = "bytes");

/// A directory that goes with everything in it.
class ScratchDirectory {
 public:
  ScratchDirectory();
  ~ScratchDirectory();
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  [[nodiscard]] std::string path(const std::string& name) const { return directory_ + "/" + name; }
  [[nodiscard]] std::vector<std::string> names() const;

 private:
  std::string directory_;
};

Bytes read_file(const std::string& path);
void write_file(const std::string& path, std::span<const std::byte> bytes);

/// `frames` frames of 4 KiB with something of every kind: compressible, random, zeroes, duplicates; the last one short.
Bytes mixed_contents(std::size_t frames, unsigned seed = 1);
/// Packs in frames of 4 KiB.
pack::WriterOptions small_frames();
/// The file of a pack of `contents`.
Bytes packed(const Bytes& contents, const pack::WriterOptions& options = small_frames());

/// The checksums of a pack whose header or index were changed, made right again. False: it has no index to speak of.
bool mend_checksums(std::span<std::byte> pack);

/// A pack source over the bytes of a pack, without a base.
Result<std::unique_ptr<PageSource>> open_packed(Bytes pack);

}  // namespace uffda::test
