#include "mm/read_ahead.h"

#include <algorithm>

namespace uffda {
namespace {

constexpr std::uint64_t kFirstWindow = 4;     // folios of the second request of a stream
constexpr std::uint64_t kSequentialGap = 16;  // folios that a sequential reader may skip
constexpr std::int64_t kMaxStride = 4096;     // farther apart is chance
constexpr unsigned kStrideStreak = 2;         // equal steps before a stride is believed
constexpr std::int64_t kStridesAhead = 4;

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

AheadRanges ReadAhead::go_ahead(Stream& stream, FolioIndex index, const ReadAheadLimits& limits) {
  AheadRanges ahead;
  // A young stream stays one window ahead; a proven one keeps the pipe full.
  const std::uint64_t reach = stream.window < limits.max_window ? 2 * stream.window : limits.max_ahead;
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
    stream->window = std::min(limits.max_window, std::max({kFirstWindow, limits.unit, 2 * stream->window}));
    const FolioRange demand = whole_units(index, stream->window, limits);
    stream->last = index;
    stream->stride = 0;
    stream->ahead_end = demand.end();
    return {.demand = demand, .ahead = go_ahead(*stream, index, limits)};
  }
  const FolioRange alone = whole_units(index, 1, limits);
  if (Stream* stream = strided_stream(index)) {
    const auto step = static_cast<std::int64_t>(index) - static_cast<std::int64_t>(stream->last);
    stream->streak = stream->stride == step ? stream->streak + 1 : 1;
    stream->stride = step;
    stream->last = index;
    stream->ahead_end = alone.end();
    if (stream->streak < kStrideStreak) return {.demand = alone, .ahead = {}};
    return {.demand = alone, .ahead = stride_ahead(*stream, index, limits)};
  }
  replace_one() = {.last = index, .ahead_end = alone.end(), .window = 1, .stride = 0, .streak = 0};
  return {.demand = alone, .ahead = {}};
}

AheadRanges ReadAhead::on_hit(FolioIndex index, const ReadAheadLimits& limits) {
  for (Stream& stream : streams_) {
    if (stream.window <= 1 || index <= stream.last || index >= stream.ahead_end) continue;
    stream.last = index;
    stream.window = std::min(limits.max_window, 2 * stream.window);
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
