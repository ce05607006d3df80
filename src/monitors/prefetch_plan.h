// What to prefetch in which order, how fast, and when to stop: pure decisions, tested without a kernel or a clock.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "monitors/working_set.h"
#include "uffda/background_fill.h"
#include "uffda/deadline.h"
#include "uffda/units.h"

namespace uffda {

/// The object that a plan is for.
struct PrefetchTarget {
  ByteCount size;
  ByteCount folio_size;
  ByteCount unit{1};  ///< of its source: what is read at once anyway
};

/// The folios of `set` in the target's folios, in recorded order.
std::vector<FolioRange> recorded_folios(const WorkingSet& set, const PrefetchTarget& target);

/// Reads that bring `wanted`, each of whole units and at most 1 MiB (or one folio). They keep the recorded order, but
/// what was touched within kReorderBytes is sorted, so that neighbours make one large read; a gap between them that
/// costs less to read than to skip is read, too.
std::vector<FolioRange> plan_prefetch(const std::vector<FolioRange>& wanted, const PrefetchTarget& target);
inline constexpr ByteCount kPrefetchRead = 1_MiB;
inline constexpr ByteCount kPrefetchGap = 64_KiB;
inline constexpr ByteCount kReorderBytes = 8_MiB;

/// How a prefetch is doing.
struct PrefetchCounts {
  std::uint64_t prefetched = 0;      ///< folios that were asked for
  std::uint64_t hits = 0;            ///< of these, touched later
  std::uint64_t evicted_unread = 0;  ///< of these, dropped before anybody touched them
  std::uint64_t strays = 0;          ///< folios that were touched though the recording does not have them
};

/// The pager's memory.
struct PrefetchRoom {
  ByteCount resident;
  ByteCount in_flight;
  ByteCount limit;
};

/// Why to stop; FillEnd::running: go on. `since` is what the counts were when they were judged last: see kJudgedFolios.
/// - memory: an eighth of the limit is left, from there on prefetching would evict;
/// - evicted: more than an eighth of what was prefetched went unread;
/// - useless: of the last kJudgedFolios that were touched, fewer than an eighth had been prefetched, and more than half
///   are not in the recording.
FillEnd why_stop(const PrefetchCounts& now, const PrefetchCounts& since, const PrefetchRoom& room);
inline constexpr std::uint64_t kJudgedFolios = 512;
/// Whether enough was touched since `since` to judge, and then start anew.
bool judged(const PrefetchCounts& now, const PrefetchCounts& since);

/// Bytes a second, with a burst of a tenth of a second. Threads: the caller serialises.
class RateLimit {
 public:
  /// 0: no limit.
  explicit RateLimit(ByteCount per_second) : per_second_(per_second) {}
  /// `bytes` are about to be used: how long to wait before.
  Duration take(ByteCount bytes, TimePoint now);
  /// A request should not be larger than this, so that a low rate is a steady one.
  [[nodiscard]] ByteCount step(ByteCount most, ByteCount unit) const;

 private:
  ByteCount per_second_;
  TimePoint paid_until_;
};

}  // namespace uffda
