// One set of the host cache: the few slots that a piece may be in, and which of them gives way (SIEVE: Zhang et al.,
// NSDI 2024, within a set). Decisions on a copy: nothing here reads or writes a file.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace uffda::sources {

/// What a piece is known by, and the checksum of it. XXH3-128.
struct Hash128 {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  bool operator==(const Hash128&) const = default;
};

/// As it stands in the file. All zeroes: free.
struct CacheEntry {
  enum : std::uint32_t { free = 0, data = 1, zeroes = 2 };
  Hash128 key;
  Hash128 checksum;        ///< of the piece; its seed is the key
  std::uint64_t sequence;  ///< grows with every piece that comes in
  std::uint32_t kind;
  std::uint32_t visited;  ///< read since the hand passed
  std::uint32_t length;   ///< bytes; the last piece of a source is shorter
  std::array<std::uint32_t, 3> unused;
};
static_assert(sizeof(CacheEntry) == 64);

/// A page of the file. Whatever stands in it is legal: a reader believes a checksum only.
struct CacheSet {
  static constexpr std::size_t kWays = 63;
  std::uint64_t newest;  ///< sequence
  std::uint64_t hand;    ///< the sequence that the hand points at
  std::array<std::uint64_t, 6> unused;
  std::array<CacheEntry, kWays> entries;

  /// The slot that holds the piece.
  [[nodiscard]] std::optional<std::size_t> find(const Hash128& key) const;

  /// The slot that a new piece shall take: one that is free, or else the first from the hand on (from the oldest to the
  /// newest, and round) that was not visited. Moves the hand and takes the mark off those it passes.
  std::size_t make_room();

  /// The sequence of a piece that comes in now: newer than every other, whatever was read from the file.
  std::uint64_t next();

 private:
  /// The slots, oldest first.
  [[nodiscard]] std::array<std::size_t, kWays> by_age() const;
};
static_assert(sizeof(CacheSet) == 4096);

}  // namespace uffda::sources
