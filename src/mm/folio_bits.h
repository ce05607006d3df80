// A set of folios of one object: one bit for each, changed by any thread without a lock or an allocation.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>

#include "os/memory.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

class FolioBits {
 public:
  FolioBits() = default;  ///< of none
  /// All clear; memory is taken as bits are set. Errors: no_memory.
  static Result<FolioBits> create(std::uint64_t folios) {
    const ByteCount bytes{align_up(folios, kWordBits) / 8};
    return FolioBits(
        UFFDA_TRY(os::map_memory(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)), folios);
  }

  [[nodiscard]] bool test(FolioIndex index) const {
    return index < folios_ &&
           (words_[index / kWordBits].load(std::memory_order_relaxed) >> index % kWordBits & 1U) != 0;
  }
  /// Sets the bits of `range` and calls `fresh` with each run of those that were clear, in ascending order.
  template <typename Fresh>
  void set(FolioRange range, Fresh&& fresh) {
    FolioRange run;
    each_word(range, [&](std::uint64_t word, std::uint64_t mask) {
      std::uint64_t added = words_[word].load(std::memory_order_relaxed);
      // A plain look first: nearly all touches are of what is known.
      added = (added & mask) == mask ? 0 : mask & ~words_[word].fetch_or(mask, std::memory_order_relaxed);
      while (added != 0) {
        const auto first = static_cast<unsigned>(std::countr_zero(added));
        const auto count = static_cast<unsigned>(std::countr_one(added >> first));
        const FolioRange part{.first = word * kWordBits + first, .count = count};
        if (run.end() != part.first || run.empty()) {
          if (!run.empty()) fresh(run);
          run = part;
        } else {
          run.count += count;
        }
        added &= ~(bits(count) << first);
      }
    });
    if (!run.empty()) fresh(run);
  }
  void set(FolioRange range) {
    set(range, [](FolioRange) {});
  }
  /// Whether the bit was set. It is clear now.
  bool test_and_clear(FolioIndex index) {
    if (!test(index)) return false;
    const std::uint64_t mask = std::uint64_t{1} << index % kWordBits;
    return (words_[index / kWordBits].fetch_and(~mask, std::memory_order_relaxed) & mask) != 0;
  }
  /// Clears the first run of set bits in `range`, at most `most` of them, and returns it. Empty: none is set. Nobody
  /// else changes these bits.
  FolioRange take_run(FolioRange range, std::uint64_t most) {
    FolioRange run;
    bool ended = false;
    each_word(range, [&](std::uint64_t word, std::uint64_t mask) {
      if (ended || run.count == most) return;
      const std::uint64_t set = words_[word].load(std::memory_order_relaxed);
      const std::uint64_t candidates = set & mask;
      if (candidates == 0 || (!run.empty() && (candidates & (mask & -mask)) == 0)) {
        ended = !run.empty();
        return;
      }
      const auto first = static_cast<unsigned>(std::countr_zero(candidates));
      const std::uint64_t found = static_cast<unsigned>(std::countr_one(candidates >> first));
      const std::uint64_t count = std::min(found, most - run.count);
      if (run.empty()) run.first = word * kWordBits + first;
      run.count += count;
      ended = first + count < kWordBits;
      words_[word].store(set & ~(bits(count) << first), std::memory_order_relaxed);
    });
    return run;
  }
  /// How many bits of `range` are set.
  [[nodiscard]] std::uint64_t count(FolioRange range) const {
    std::uint64_t sum = 0;
    each_word(range, [&](std::uint64_t word, std::uint64_t mask) {
      sum += static_cast<std::uint64_t>(std::popcount(words_[word].load(std::memory_order_relaxed) & mask));
    });
    return sum;
  }
  [[nodiscard]] std::uint64_t folios() const { return folios_; }

 private:
  using Word = std::atomic<std::uint64_t>;
  static_assert(sizeof(Word) == sizeof(std::uint64_t) && Word::is_always_lock_free);
  static constexpr std::uint64_t kWordBits = 64;

  FolioBits(os::MappedMemory memory, std::uint64_t folios)
      : memory_(std::move(memory)), words_(reinterpret_cast<Word*>(memory_.bytes().data())), folios_(folios) {}

  static constexpr std::uint64_t bits(std::uint64_t count) {
    return count >= kWordBits ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
  }
  template <typename Visit>
  void each_word(FolioRange range, Visit&& visit) const {
    const FolioIndex end = std::min(range.end(), folios_);
    for (FolioIndex at = range.first; at < end;) {
      const std::uint64_t shift = at % kWordBits;
      const std::uint64_t count = std::min(kWordBits - shift, end - at);
      visit(at / kWordBits, bits(count) << shift);
      at += count;
    }
  }

  os::MappedMemory memory_;
  Word* words_ = nullptr;
  std::uint64_t folios_ = 0;
};

}  // namespace uffda
