// What to fetch beside the folio that is missing: a pure decision over the last few streams of faults.
//
// Random: the folio alone, or where random faults come in clusters (fault_clusters.h) a few around it. Sequential: a
// window that doubles to 1 MiB, and more windows ahead of it while the reader consumes this one, so that the reader
// finds them cached: as many as the source needs to keep up, which is what the reader consumes while one answer is on
// its way. Strided: the next few folios of the stride. All of it in whole units of the source. The plan names
// candidates; the object fetches those of them that are absent.
#pragma once

#include <array>
#include <cstdint>

#include "mm/fault_clusters.h"
#include "uffda/deadline.h"
#include "uffda/units.h"

namespace uffda {

struct ReadAheadLimits {
  std::uint64_t folios = 0;        ///< of the object
  std::uint64_t max_window = 256;  ///< folios of one request
  std::uint64_t max_ahead = 1024;  ///< folios from the fault to the end of what is fetched ahead
  std::uint64_t unit = 1;          ///< folios that cost as much as one of them; at most max_window
  bool plenty = true;              ///< of memory: what may be touched soon may take some
  Duration latency{};              ///< of the source: the least that an answer takes
  TimePoint now;
};

/// A short list of ranges to fetch though nobody waits for them yet.
struct AheadRanges {
  static constexpr std::size_t kMost = 8;
  std::array<FolioRange, kMost> ranges{};
  std::size_t count = 0;

  void add(FolioRange range) {
    if (count < kMost && !range.empty()) ranges.at(count++) = range;
  }
};

struct ReadAheadPlan {
  FolioRange demand;  ///< contains the missing folio, in one request
  AheadRanges ahead;
};

/// Folios that a proven sequential reader has asked for ahead of itself: what it consumes (`rate`, in folios a second)
/// while an answer is under way, and two windows more; at least kProvenWindows of them.
std::uint64_t folios_ahead(double rate, const ReadAheadLimits& limits);

/// The streams of one object. Threads: the caller serialises.
class ReadAhead {
 public:
  /// A fault found `index` absent.
  ReadAheadPlan on_miss(FolioIndex index, const ReadAheadLimits& limits);
  /// A fault found `index` cached: the stream it belongs to (if any) goes on ahead.
  AheadRanges on_hit(FolioIndex index, const ReadAheadLimits& limits);

  /// The folios in which a hit makes a stream go on: [begin, end) of stream `slot`. Empty if there is none.
  static constexpr std::size_t kStreams = 4;
  static constexpr std::uint64_t kProvenWindows = 4;
  [[nodiscard]] FolioRange trigger(std::size_t slot) const;

 private:
  struct Stream {
    FolioIndex last = 0;       ///< the last fault of it
    FolioIndex ahead_end = 0;  ///< fetched, or being fetched, up to here
    std::uint64_t window = 0;  ///< folios of the next request; 0: no stream
    std::int64_t stride = 0;   ///< folios from fault to fault, when they are not sequential
    unsigned streak = 0;       ///< faults in a row that this stream foresaw
    FolioIndex rated_at = 0;   ///< where and when its rate was measured last
    TimePoint rated;
    double rate = 0;  ///< folios a second
  };

  Stream* sequential_stream(FolioIndex index);
  Stream* strided_stream(FolioIndex index);
  Stream& replace_one();
  /// Where the fault follows nothing: its unit, or in a cluster some around it.
  FolioRange around(FolioIndex index, const ReadAheadLimits& limits);
  static void measure(Stream& stream, FolioIndex index, const ReadAheadLimits& limits);
  static AheadRanges go_ahead(Stream& stream, FolioIndex index, const ReadAheadLimits& limits);
  static AheadRanges stride_ahead(const Stream& stream, FolioIndex index, const ReadAheadLimits& limits);

  std::array<Stream, kStreams> streams_{};
  FaultClusters clusters_;
  std::size_t victim_ = 0;
};

}  // namespace uffda
