// Words of memory that faults, which several threads write and read at once; that is meant. They are no atomics: the
// thread sanitizer takes the faults of those with locks of its own held.
#pragma once

#include <cstdint>

namespace uffda::test {

__attribute__((noinline, no_sanitize("thread"))) inline std::uint64_t load_plain(const volatile std::uint64_t* word) {
  const std::uint64_t value = *word;
  asm volatile("" ::: "memory");
  return value;
}
__attribute__((noinline, no_sanitize("thread"))) inline void store_plain(volatile std::uint64_t* word,
                                                                         std::uint64_t value) {
  *word = value;
  asm volatile("" ::: "memory");
}

}  // namespace uffda::test
