#pragma once

#include <cstddef>
#include <cstring>
#include <span>

namespace uffda {

/// Whether every byte is zero. `bytes` is not empty.
inline bool all_zero(std::span<const std::byte> bytes) {
  return bytes.front() == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

}  // namespace uffda
