// A virtual machine of one processor in 64-bit mode, and nothing else: no devices, no interrupts.
#pragma once

#include <cstdint>

#include "memory.h"

struct kvm_run;

class Vm {
 public:
  explicit Vm(const GuestMemory& memory);

  /// [first, end) in steps of `stride`: `words` of each page are checked, or written.
  struct Range {
    std::uint64_t first, end, stride, words;
  };
  enum class Holds : bool { zeroes, pattern };
  /// How many words are not what they should be.
  std::uint64_t verify(const Range& range, std::uint64_t seed, Holds holds);
  void fill(const Range& range, std::uint64_t seed);

 private:
  std::uint64_t call(std::uint64_t routine, const Range& range, std::uint64_t seed, std::uint64_t mask);

  int machine_ = -1;
  int processor_ = -1;
  kvm_run* run_ = nullptr;
};
