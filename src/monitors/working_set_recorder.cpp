#include "monitors/working_set_recorder.h"

#include <sys/mman.h>

#include <algorithm>
#include <limits>

namespace uffda {

Result<std::shared_ptr<WorkingSetRecorder>> WorkingSetRecorder::create(const MemoryObject& object, std::string name,
                                                                       std::size_t most_runs) {
  most_runs = std::min(most_runs, static_cast<std::size_t>(object.folios()));
  WorkingSet what{
      .name = std::move(name), .size = object.size(), .folio_size = object.folio_size(), .complete = true, .runs = {}};
  FolioBits seen = UFFDA_TRY(FolioBits::create(object.folios()));
  os::MappedMemory log = UFFDA_TRY(
      os::map_memory({most_runs * sizeof(Entry)}, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE));
  return std::shared_ptr<WorkingSetRecorder>(
      new WorkingSetRecorder(std::move(what), std::move(seen), std::move(log), most_runs));
}

void WorkingSetRecorder::touched(FolioRange folios) noexcept {
  seen_.set(folios, [this](FolioRange fresh) {
    const std::uint64_t slot = next_.fetch_add(1, std::memory_order_relaxed);
    if (slot >= most_runs_) return;  // counted, and said in the snapshot
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - started_).count();
    constexpr std::int64_t kMost = std::numeric_limits<std::uint32_t>::max() - 1;
    Entry& entry = entries_[slot];
    entry.first.store(fresh.first, std::memory_order_relaxed);
    entry.count.store(static_cast<std::uint32_t>(fresh.count), std::memory_order_relaxed);
    entry.at_ms_plus_1.store(static_cast<std::uint32_t>(std::min<std::int64_t>(ms, kMost)) + 1,
                             std::memory_order_release);
  });
}

WorkingSet WorkingSetRecorder::snapshot() const {
  WorkingSet set = what_;
  const std::uint64_t logged = next_.load(std::memory_order_relaxed);
  set.complete = logged <= most_runs_;
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(logged, most_runs_); ++i) {
    const std::uint32_t at = entries_[i].at_ms_plus_1.load(std::memory_order_acquire);
    if (at == 0) continue;  // being written
    const FolioRange folios{.first = entries_[i].first.load(std::memory_order_relaxed),
                            .count = entries_[i].count.load(std::memory_order_relaxed)};
    const bool follows = !set.runs.empty() && set.runs.back().folios.end() == folios.first &&
                         set.runs.back().folios.count + folios.count <= std::numeric_limits<std::uint32_t>::max();
    if (follows) {
      set.runs.back().folios.count += folios.count;
    } else {
      set.runs.push_back({.folios = folios, .at = std::chrono::milliseconds(at - 1)});
    }
  }
  return set;
}

}  // namespace uffda
