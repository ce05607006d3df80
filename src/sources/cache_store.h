// The file of the host cache, DIR/uffda-cache: pieces of remote sources, shared by all processes of one user.
//
//   header      a page: magic, version, geometry
//   sets        a page each: CacheSet, the descriptions of 63 slots
//   slots       64 KiB each; set s has the slots 63 s to 63 s + 62
//
// A piece belongs into one set, which its key chooses. Reading takes no lock: the description and the bytes are read,
// and the checksum, which the key is part of, says whether they belong together. Writing locks the set (an OFD lock of
// its page, which the kernel drops with the process), frees the slot's description, writes the bytes, and describes
// them. So whatever a process that is killed, a machine that stops, or a foreign hand leaves in the file reads as "not
// there", never as wrong bytes. A file of another version or with a damaged header is replaced by a new one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/mutex.h"
#include "os/fd.h"
#include "sources/cache_set.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::sources {

inline constexpr ByteCount kCachePiece = 64_KiB;

/// XXH3-128 of `bytes`; different seeds give unrelated hashes.
Hash128 hash_of(std::span<const std::byte> bytes, std::uint64_t seed = 0);

class CacheStore {
 public:
  /// The cache in `directory`, which is made if it is not there. It takes at most `size` bytes of disk, and they are
  /// taken as they are needed. Errors: invalid_argument (too small; there is one of another size; the name is taken by
  /// something else), permission_denied (somebody else's), no_memory (the disk is full), io.
  static Result<std::unique_ptr<CacheStore>> open(const std::string& directory, ByteCount size);

  /// Fills `bytes` with the piece of that name, whose length is known. False: it is not there. Threads: any.
  [[nodiscard]] bool read(const Hash128& key, std::span<std::byte> bytes);
  /// Stores a piece, unless somebody else is at that set just now. Errors: no_memory (the disk is full), io.
  /// Threads: any.
  Result<void> write(const Hash128& key, std::span<const std::byte> bytes);

  [[nodiscard]] std::uint64_t sets() const { return sets_; }

 private:
  CacheStore(os::UniqueFd fd, std::uint64_t sets) : fd_(std::move(fd)), sets_(sets) {}

  [[nodiscard]] std::uint64_t set_of(const Hash128& key) const { return key.high % sets_; }
  [[nodiscard]] bool read_set(std::uint64_t number, CacheSet& set) const;
  Result<void> insert_locked(std::uint64_t number, const Hash128& key, std::span<const std::byte> bytes)
      UFFDA_REQUIRES(writing_);

  const os::UniqueFd fd_;
  const std::uint64_t sets_;
  Mutex writing_;  ///< OFD locks know no threads
};

}  // namespace uffda::sources
