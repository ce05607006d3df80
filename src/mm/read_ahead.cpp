#include "mm/read_ahead.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace uffda {
namespace {

constexpr std::uint64_t kFirstWindow = 4;     // folios of the second request of a stream
constexpr std::uint64_t kSequentialGap = 16;  // folios that a sequential reader may skip
constexpr std::int64_t kMaxStride = 4096;     // farther apart is chance
constexpr unsigned kStrideStreak = 2;         // equal steps before a stride is believed
constexpr std::int64_t kStridesAhead = 4;
constexpr Duration kFarAway = std::chrono::microseconds(500);  // then waiting costs more than reading a little more
constexpr double kRateDecay = 0.75;                            // of the old rate, where the new one is lower

/// What the next request of a stream grows to.
std::uint64_t grown(std::uint64_t window, const ReadAheadLimits& limits) {
  return std::min(limits.max_window, window * (limits.latency >= kFarAway ? 4 : 2));
}

/// At least `count` folios from the start of the unit that has `index`, in whole units but for the end of the object.
FolioRange whole_units(FolioIndex index, std::uint64_t count, const ReadAheadLimits& limits) {
  const FolioIndex first = index / limits.unit * limits.unit;
  const std::uint64_t most = limits.max_window / limits.unit * limits.unit;
  const std::uint64_t units = (count + limits.unit - 1) / limits.unit;
  return {.first = first, .count = std::min({units * limits.unit, most, limits.folios - first})};
}

}  // namespace

ReadAhead::Stream* ReadAhead::sequential_stream(FolioIndex index) {
  for (Stream& stream : streams_) {
    if (stream.window != 0 && index > stream.last && index <= stream.ahead_end + kSequentialGap) return &stream;
  }
  return nullptr;
}

ReadAhead::Stream* ReadAhead::strided_stream(FolioIndex index) {
  for (Stream& stream : streams_) {
    if (stream.window == 0) continue;
    const auto step = static_cast<std::int64_t>(index) - static_cast<std::int64_t>(stream.last);
    if (step == 0 || step > kMaxStride || step < -kMaxStride) continue;
    if (stream.stride != 0 && stream.stride != step) continue;
    return &stream;
  }
  return nullptr;
}

ReadAhead::Stream& ReadAhead::replace_one() {
  Stream& stream = streams_.at(victim_++ % kStreams);
  stream = {};
  return stream;
}

std::uint64_t folios_ahead(double rate, const ReadAheadLimits& limits) {
  const double seconds = std::chrono::duration<double>(limits.latency).count();
  const double consumed = std::min(rate * seconds, static_cast<double>(limits.max_ahead));
  const auto windows = static_cast<std::uint64_t>(std::ceil(consumed / static_cast<double>(limits.max_window)));
  const std::uint64_t wanted = std::max(windows + 2, ReadAhead::kProvenWindows) * limits.max_window;
  return std::min(wanted, limits.max_ahead);
}

void ReadAhead::measure(Stream& stream, FolioIndex index, const ReadAheadLimits& limits) {
  // The faults of a reader come in bursts: only what it has read in a longer time says how fast it is.
  if (index < stream.rated_at + limits.max_window || limits.now <= stream.rated) return;
  const double seconds = std::chrono::duration<double>(limits.now - stream.rated).count();
  if (stream.rated != TimePoint{}) {
    stream.rate = std::max(static_cast<double>(index - stream.rated_at) / seconds, stream.rate * kRateDecay);
  }
  stream.rated_at = index;
  stream.rated = limits.now;
}

AheadRanges ReadAhead::go_ahead(Stream& stream, FolioIndex index, const ReadAheadLimits& limits) {
  AheadRanges ahead;
  measure(stream, index, limits);
  // A young stream stays one window ahead; a proven one keeps the pipe full.
  const std::uint64_t reach = stream.window < limits.max_window ? 2 * stream.window : folios_ahead(stream.rate, limits);
  const FolioIndex target = std::min(limits.folios, index + reach);
  while (stream.ahead_end < target && ahead.count < AheadRanges::kMost) {
    const FolioRange next = whole_units(stream.ahead_end, stream.window, limits);
    ahead.add(next);
    stream.ahead_end = next.end();
  }
  return ahead;
}

AheadRanges ReadAhead::stride_ahead(const Stream& stream, FolioIndex index, const ReadAheadLimits& limits) {
  AheadRanges ahead;
  for (std::int64_t step = 1; step <= kStridesAhead; ++step) {
    const std::int64_t next = static_cast<std::int64_t>(index) + step * stream.stride;
    if (next < 0 || next >= static_cast<std::int64_t>(limits.folios)) break;
    ahead.add(whole_units(static_cast<FolioIndex>(next), 1, limits));
  }
  return ahead;
}

ReadAheadPlan ReadAhead::on_miss(FolioIndex index, const ReadAheadLimits& limits) {
  if (Stream* stream = sequential_stream(index)) {
    clusters_.note(index);
    stream->window = std::min(limits.max_window, std::max({kFirstWindow, limits.unit, grown(stream->window, limits)}));
    const FolioRange demand = whole_units(index, stream->window, limits);
    stream->last = index;
    stream->stride = 0;
    stream->ahead_end = demand.end();
    return {.demand = demand, .ahead = go_ahead(*stream, index, limits)};
  }
  const FolioRange alone = whole_units(index, 1, limits);
  // What is fetched around it says nothing of where the reader goes: the stream ends with the folio itself.
  if (Stream* stream = strided_stream(index)) {
    const auto step = static_cast<std::int64_t>(index) - static_cast<std::int64_t>(stream->last);
    stream->streak = stream->stride == step ? stream->streak + 1 : 1;
    stream->stride = step;
    stream->last = index;
    stream->ahead_end = alone.end();
    if (stream->streak < kStrideStreak) return {.demand = around(index, limits), .ahead = {}};
    return {.demand = alone, .ahead = stride_ahead(*stream, index, limits)};
  }
  replace_one() = {.last = index, .ahead_end = alone.end(), .window = 1, .stride = 0, .streak = 0};
  return {.demand = around(index, limits), .ahead = {}};
}

FolioRange ReadAhead::around(FolioIndex index, const ReadAheadLimits& limits) {
  const std::uint64_t wanted = clusters_.note(index);
  const std::uint64_t count = std::min(wanted, std::bit_floor(limits.max_window));
  if (!limits.plenty || count % limits.unit != 0) return whole_units(index, 1, limits);
  return group_of(index, count, limits.folios);
}

AheadRanges ReadAhead::on_hit(FolioIndex index, const ReadAheadLimits& limits) {
  for (Stream& stream : streams_) {
    if (stream.window <= 1 || index <= stream.last || index >= stream.ahead_end) continue;
    stream.last = index;
    stream.window = grown(stream.window, limits);
    return go_ahead(stream, index, limits);
  }
  return {};
}

FolioRange ReadAhead::trigger(std::size_t slot) const {
  const Stream& stream = streams_.at(slot);
  if (stream.window <= 1 || stream.ahead_end <= stream.last + 1) return {};
  return {.first = stream.last + 1, .count = stream.ahead_end - stream.last - 1};
}

}  // namespace uffda
