// Strong units: a byte offset, a byte count, a folio index and an address of some address space never mix by accident.
#pragma once

#include <compare>
#include <cstdint>

namespace uffda {

/// A number of bytes.
struct ByteCount {
  std::uint64_t value = 0;
  friend constexpr auto operator<=>(ByteCount, ByteCount) = default;
  friend constexpr ByteCount operator+(ByteCount a, ByteCount b) { return {a.value + b.value}; }
  friend constexpr ByteCount operator-(ByteCount a, ByteCount b) { return {a.value - b.value}; }
  friend constexpr ByteCount operator*(ByteCount a, std::uint64_t n) { return {a.value * n}; }
  constexpr ByteCount& operator+=(ByteCount b) { return value += b.value, *this; }
  constexpr ByteCount& operator-=(ByteCount b) { return value -= b.value, *this; }
};

/// A position in an object or a source, in bytes from its start.
struct ByteOffset {
  std::uint64_t value = 0;
  friend constexpr auto operator<=>(ByteOffset, ByteOffset) = default;
  friend constexpr ByteOffset operator+(ByteOffset a, ByteCount n) { return {a.value + n.value}; }
  friend constexpr ByteOffset operator-(ByteOffset a, ByteCount n) { return {a.value - n.value}; }
  friend constexpr ByteCount operator-(ByteOffset a, ByteOffset b) { return {a.value - b.value}; }
};

/// A virtual address in the address space at hand, which may be another process's: never dereferenced.
struct Address {
  std::uint64_t value = 0;
  friend constexpr auto operator<=>(Address, Address) = default;
  friend constexpr Address operator+(Address a, ByteCount n) { return {a.value + n.value}; }
  friend constexpr Address operator-(Address a, ByteCount n) { return {a.value - n.value}; }
  friend constexpr ByteCount operator-(Address a, Address b) { return {a.value - b.value}; }
};

/// [start, start + length) of an object or a source.
struct ByteRange {
  ByteOffset start;
  ByteCount length;
  friend constexpr bool operator==(ByteRange, ByteRange) = default;
  [[nodiscard]] constexpr ByteOffset end() const { return start + length; }
  [[nodiscard]] constexpr bool empty() const { return length.value == 0; }
};

/// The place of a folio in its object: its offset divided by the object's folio size.
using FolioIndex = std::uint64_t;

/// [first, first + count) folios of an object.
struct FolioRange {
  FolioIndex first = 0;
  std::uint64_t count = 0;
  friend constexpr bool operator==(FolioRange, FolioRange) = default;
  [[nodiscard]] constexpr FolioIndex end() const { return first + count; }
  [[nodiscard]] constexpr bool empty() const { return count == 0; }
  [[nodiscard]] constexpr bool contains(FolioIndex index) const { return index >= first && index < end(); }
  [[nodiscard]] constexpr bool overlaps(FolioRange other) const { return first < other.end() && other.first < end(); }
};

inline constexpr ByteCount kPageSize{4096};

constexpr ByteCount operator""_KiB(unsigned long long n) { return {n << 10U}; }
constexpr ByteCount operator""_MiB(unsigned long long n) { return {n << 20U}; }
constexpr ByteCount operator""_GiB(unsigned long long n) { return {n << 30U}; }

constexpr std::uint64_t align_down(std::uint64_t value, std::uint64_t unit) { return value - value % unit; }
constexpr std::uint64_t align_up(std::uint64_t value, std::uint64_t unit) { return align_down(value + unit - 1, unit); }

}  // namespace uffda
