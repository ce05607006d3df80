#include "monitors/prefetch_plan.h"

#include <algorithm>

namespace uffda {
namespace {

constexpr std::uint64_t kShare = 8;         // an eighth is little
constexpr std::uint64_t kFewEvicted = 256;  // folios that may be evicted unread before it means anything

/// Folios of one read of the target: whole units.
struct ReadShape {
  std::uint64_t folios;
  std::uint64_t unit;  // folios
  std::uint64_t most;
  std::uint64_t gap;
};

ReadShape shape_of(const PrefetchTarget& target) {
  const std::uint64_t folio = target.folio_size.value;
  const std::uint64_t unit = std::max(target.unit.value / folio, std::uint64_t{1});
  return {.folios = align_up(target.size.value, folio) / folio,
          .unit = unit,
          .most = std::max(align_down(kPrefetchRead.value / folio, unit), unit),
          .gap = kPrefetchGap.value / folio};
}

FolioRange in_units(FolioRange range, const ReadShape& shape) {
  const FolioIndex first = align_down(range.first, shape.unit);
  return {.first = first, .count = std::min(align_up(range.end(), shape.unit), shape.folios) - first};
}

/// Sorts [first, last), joins what is near, and appends it in reads of at most shape.most.
void append_reads(std::vector<FolioRange>& reads, std::vector<FolioRange>& part, const ReadShape& shape) {
  std::ranges::sort(part, {}, &FolioRange::first);
  FolioRange read;
  const auto flush = [&] {
    for (; !read.empty(); read = {.first = read.first + reads.back().count, .count = read.count - reads.back().count})
      reads.push_back({.first = read.first, .count = std::min(read.count, shape.most)});
  };
  for (const FolioRange one : part) {
    const FolioRange next = in_units(one, shape);
    if (!read.empty() && next.first <= read.end() + shape.gap) {
      read.count = std::max(read.end(), next.end()) - read.first;
    } else {
      flush();
      read = next;
    }
  }
  flush();
  part.clear();
}

}  // namespace

std::vector<FolioRange> recorded_folios(const WorkingSet& set, const PrefetchTarget& target) {
  std::vector<FolioRange> folios;
  folios.reserve(set.runs.size());
  for (const TouchedRun& run : set.runs) {
    // Either may have the larger folios.
    const std::uint64_t start = run.folios.first * set.folio_size.value;
    const std::uint64_t end = std::min(run.folios.end() * set.folio_size.value, target.size.value);
    const FolioIndex first = start / target.folio_size.value;
    folios.push_back(
        {.first = first, .count = align_up(end, target.folio_size.value) / target.folio_size.value - first});
  }
  return folios;
}

std::vector<FolioRange> plan_prefetch(const std::vector<FolioRange>& wanted, const PrefetchTarget& target) {
  const ReadShape shape = shape_of(target);
  const std::uint64_t most = std::max(kReorderBytes.value / target.folio_size.value, std::uint64_t{1});
  std::vector<FolioRange> reads;
  std::vector<FolioRange> part;
  std::uint64_t folios = 0;
  for (const FolioRange range : wanted) {
    part.push_back(range);
    folios += range.count;
    if (folios < most) continue;
    append_reads(reads, part, shape);
    folios = 0;
  }
  append_reads(reads, part, shape);
  return reads;
}

bool judged(const PrefetchCounts& now, const PrefetchCounts& since) {
  return now.hits + now.strays - since.hits - since.strays >= kJudgedFolios;
}

FillEnd why_stop(const PrefetchCounts& now, const PrefetchCounts& since, const PrefetchRoom& room) {
  if (room.resident + room.in_flight > ByteCount{room.limit.value - room.limit.value / kShare}) return FillEnd::memory;
  if (now.evicted_unread >= std::max(now.prefetched / kShare, kFewEvicted)) return FillEnd::evicted;
  if (!judged(now, since)) return FillEnd::running;
  const std::uint64_t hits = now.hits - since.hits;
  const std::uint64_t strays = now.strays - since.strays;
  return hits * kShare < hits + strays && strays * 2 > hits + strays ? FillEnd::useless : FillEnd::running;
}

Duration RateLimit::take(ByteCount bytes, TimePoint now) {
  if (per_second_.value == 0) return {};
  constexpr Duration kBurst = std::chrono::milliseconds(100);
  const std::chrono::duration<double> costs(static_cast<double>(bytes.value) / static_cast<double>(per_second_.value));
  paid_until_ = std::max(paid_until_, now - kBurst);
  const Duration wait = std::max(Duration{}, paid_until_ - now);
  paid_until_ += std::chrono::duration_cast<Duration>(costs);
  return wait;
}

ByteCount RateLimit::step(ByteCount most, ByteCount unit) const {
  if (per_second_.value == 0) return most;
  constexpr std::uint64_t kStepsASecond = 10;
  return std::clamp(ByteCount{align_down(per_second_.value / kStepsASecond, unit.value)}, unit, most);
}

}  // namespace uffda
