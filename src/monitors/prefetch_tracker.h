// What became of prefetched folios: touched, evicted unread, or neither yet; and touches that nobody foresaw.
#pragma once

#include <atomic>
#include <memory>
#include <span>

#include "mm/folio_bits.h"
#include "mm/folio_observer.h"
#include "monitors/prefetch_plan.h"
#include "uffda/result.h"

namespace uffda {

/// Threads: any. Give it to MemoryObject::observe.
class PrefetchTracker final : public FolioObserver {
 public:
  /// `wanted` are the recorded folios of an object of `folios`. Errors: no_memory.
  static Result<std::shared_ptr<PrefetchTracker>> create(std::uint64_t folios, std::span<const FolioRange> wanted) {
    auto tracker = std::shared_ptr<PrefetchTracker>(new PrefetchTracker(UFFDA_TRY(FolioBits::create(folios)),
                                                                        UFFDA_TRY(FolioBits::create(folios)),
                                                                        UFFDA_TRY(FolioBits::create(folios))));
    for (const FolioRange range : wanted) tracker->wanted_.set(range);
    return tracker;
  }

  void touched(FolioRange folios) noexcept override {
    touched_.set(folios, [this](FolioRange fresh) {
      const std::uint64_t strays = fresh.count - wanted_.count(fresh);
      if (strays != 0) strays_.fetch_add(strays, std::memory_order_relaxed);
      for (FolioIndex i = fresh.first; i < fresh.end(); ++i) count_hit(i);
    });
  }
  void evicted(FolioRange folios) noexcept override {
    for (FolioIndex i = folios.first; i < folios.end(); ++i) {
      if (unread_.test_and_clear(i)) evicted_unread_.fetch_add(1, std::memory_order_relaxed);
    }
  }

  /// The source was asked for them.
  void prefetched(FolioRange folios) {
    prefetched_.fetch_add(folios.count, std::memory_order_relaxed);
    unread_.set(folios);
    // A touch may have come first.
    for (FolioIndex i = folios.first; i < folios.end(); ++i) {
      if (touched_.test(i)) count_hit(i);
    }
  }

  [[nodiscard]] bool wanted(FolioIndex index) const { return wanted_.test(index); }
  [[nodiscard]] std::uint64_t wanted_in(FolioRange range) const { return wanted_.count(range); }
  [[nodiscard]] PrefetchCounts counts() const {
    return {.prefetched = prefetched_.load(std::memory_order_relaxed),
            .hits = hits_.load(std::memory_order_relaxed),
            .evicted_unread = evicted_unread_.load(std::memory_order_relaxed),
            .strays = strays_.load(std::memory_order_relaxed)};
  }

 private:
  PrefetchTracker(FolioBits wanted, FolioBits touched, FolioBits unread)
      : wanted_(std::move(wanted)), touched_(std::move(touched)), unread_(std::move(unread)) {}

  void count_hit(FolioIndex index) {
    if (unread_.test_and_clear(index)) hits_.fetch_add(1, std::memory_order_relaxed);
  }

  FolioBits wanted_;
  FolioBits touched_;
  FolioBits unread_;  // prefetched, and neither touched nor evicted yet
  std::atomic<std::uint64_t> prefetched_{0};
  std::atomic<std::uint64_t> hits_{0};
  std::atomic<std::uint64_t> evicted_unread_{0};
  std::atomic<std::uint64_t> strays_{0};
};

}  // namespace uffda
