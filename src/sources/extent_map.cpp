#include "sources/extent_map.h"

#include <algorithm>

namespace uffda::sources {

ExtentMap::Runs::const_iterator ExtentMap::find(std::uint64_t offset) const {
  auto next = runs_.upper_bound(offset);
  if (next == runs_.begin()) return runs_.end();
  --next;
  return offset < next->second.end ? next : runs_.end();
}

void ExtentMap::cut_at(std::uint64_t offset) {
  const auto found = find(offset);
  if (found == runs_.end() || found->first == offset) return;
  const Run tail = found->second;
  runs_[found->first].end = offset;
  runs_[offset] = tail;
}

void ExtentMap::record(const Extent& extent) {
  std::uint64_t start = extent.range.start.value;
  std::uint64_t end = extent.range.end().value;
  if (start >= end) return;
  cut_at(start);
  cut_at(end);
  runs_.erase(runs_.lower_bound(start), runs_.lower_bound(end));
  if (const auto next = runs_.find(end); next != runs_.end() && next->second.kind == extent.kind) {
    end = next->second.end;
    runs_.erase(next);
  }
  if (auto next = runs_.lower_bound(start); next != runs_.begin()) {
    const auto before = std::prev(next);
    if (before->second.end == start && before->second.kind == extent.kind) start = before->first;
  }
  runs_[start] = {end, extent.kind};
  if (runs_.size() > most_runs_) runs_.clear();
}

std::vector<Extent> ExtentMap::known(ByteRange range) const {
  std::vector<Extent> extents;
  std::uint64_t at = range.start.value;
  const std::uint64_t end = range.end().value;
  for (auto run = find(at); run != runs_.end() && run->first <= at && at < end; ++run) {
    const std::uint64_t until = std::min(run->second.end, end);
    extents.push_back({{{at}, {until - at}}, run->second.kind});
    at = until;
  }
  return extents;
}

bool ExtentMap::knows(ByteOffset offset) const { return find(offset.value) != runs_.end(); }

bool ExtentMap::zero(ByteRange range) const {
  const auto run = find(range.start.value);
  return run != runs_.end() && run->second.kind == Extent::Kind::zero && range.end().value <= run->second.end;
}

}  // namespace uffda::sources
