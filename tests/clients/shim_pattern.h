// The bytes of the object that shim_probe checks: every word is a function of its offset, no page is zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

inline uint8_t pattern_byte(uint64_t offset) {
  const uint64_t word = (offset / 8 + 1) * 0x9E3779B97F4A7C15u;
  return static_cast<uint8_t>(word >> (8 * (offset % 8)));
}

inline void fill_pattern(uint8_t* to, uint64_t offset, size_t size) {
  for (size_t i = 0; i < size; ++i) to[i] = pattern_byte(offset + i);
}

/// The first of [offset, offset + size) at which `from` is wrong, or size. Bytes at and past `end` must be zero.
inline size_t first_wrong(const uint8_t* from, uint64_t offset, size_t size, uint64_t end) {
  for (size_t i = 0; i < size; ++i) {
    const uint8_t wanted = offset + i < end ? pattern_byte(offset + i) : uint8_t{0};
    if (from[i] != wanted) return i;
  }
  return size;
}
