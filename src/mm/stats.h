// Counters and latencies of a core: relaxed atomics, updated without a lock or an allocation.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>

#include "uffda/deadline.h"

namespace uffda {

/// Where the time of a fault goes.
enum class Stage : std::uint8_t {
  cached,   ///< from reading the message of a fault on a cached folio to having it mapped
  fetch,    ///< from asking the source to its answer
  publish,  ///< from the answer to the bytes being in the page cache
  missing,  ///< from asking the source because of a fault to having the folio mapped for whoever waits
};
inline constexpr int kStages = 4;
std::string_view to_string(Stage stage);

struct LatencySummary {
  std::uint64_t count = 0;
  double p50_us = 0;
  double p90_us = 0;
  double p99_us = 0;
  double max_us = 0;
  double total_us = 0;
};

/// Latencies on a logarithmic axis from 100 ns to 100 s. Threads: any.
class LatencyHistogram {
 public:
  LatencyHistogram();
  ~LatencyHistogram();
  void record(Duration latency) noexcept;
  [[nodiscard]] LatencySummary summary() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Of the faults of one address space, or of all.
struct FaultStats {
  using Counter = std::atomic<std::uint64_t>;
  Counter faults_cached{0};    ///< found the folio cached
  Counter faults_missing{0};   ///< found it absent, and started or joined a fetch
  Counter faults_poisoned{0};  ///< ended in SIGBUS
  Counter faults_unknown{0};   ///< at an address that nobody told us of
  Counter folios_mapped{0};    ///< by CONTINUE or COPY
  Counter folios_around{0};    ///< of these, mapped beside the one that faulted
  Counter bytes_mapped{0};     ///< the same in bytes
  Counter wakes_deferred{0};   ///< resolutions that met EAGAIN and came again
  Counter events{0};           ///< REMOVE, UNMAP, REMAP, FORK
};

/// Of one address space; Stats counts the same of all of them.
struct SpaceStats : FaultStats {
  LatencyHistogram cached;   ///< as Stage::cached
  LatencyHistogram missing;  ///< as Stage::missing, for each fetch that a fault of this address space waited for
};

struct Stats : FaultStats {
  Counter fetches{0};             ///< asked of a source
  Counter fetches_ahead{0};       ///< of these, before anybody waited
  Counter fetches_background{0};  ///< of these, prefetched
  Counter bytes_fetched{0};
  Counter fetch_failures{0};
  Counter fetch_timeouts{0};
  Counter folios_evicted{0};
  Counter folios_written_back{0};
  Counter writeback_failures{0};
  std::array<LatencyHistogram, kStages> latency;

  LatencyHistogram& of(Stage stage) { return latency[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] const LatencyHistogram& of(Stage stage) const { return latency[static_cast<std::size_t>(stage)]; }
};

inline void add(Stats::Counter& counter, std::uint64_t n = 1) { counter.fetch_add(n, std::memory_order_relaxed); }

}  // namespace uffda
