#include "qemu/restore.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/log.h"
#include "memtypes/builtin.h"
#include "monitors/background_fill.h"
#include "monitors/prefetch_plan.h"
#include "monitors/recording_file.h"
#include "qemu/channel.h"
#include "qemu/entry.h"
#include "qemu/ram_push.h"

namespace uffda::qemu {
namespace {

/// What was recorded: fetched in the background, and sent first.
struct Recorded {
  std::optional<BackgroundFill> fill;
  std::vector<PushRun> runs;
};

Result<std::vector<WorkingSet>> recorded_sets(MemoryObject& object, const RestoreOptions& options) {
  if (options.no_prefetch) return std::vector<WorkingSet>{};
  if (!options.prefetch.empty()) return read_working_sets(options.prefetch);
  return read_working_sets(object.source());
}

/// The folios of the image that are RAM, as units.
void add_runs(const Machine& machine, const Units& units, FolioRange folios, std::vector<PushRun>& runs) {
  const ByteRange bytes = machine.main->bytes_of(folios);
  for (std::size_t i = 0; i < machine.blocks.size(); ++i) {
    const ServedBlock& served = machine.blocks[i];
    if (served.object != machine.main) continue;
    const std::uint64_t begin = std::max(bytes.start.value, served.place.value);
    const std::uint64_t end = std::min(bytes.end().value, served.place.value + served.block.length.value);
    if (begin >= end) continue;
    const ByteRange part{.start = {begin - served.place.value}, .length = {end - begin}};
    runs.push_back(units_of(units, i, part, Extent::Kind::data));
  }
}

Result<Recorded> prefetch(const Machine& machine, const RestoreOptions& options) {
  Recorded recorded;
  MemoryObject& object = *machine.main;
  const std::vector<WorkingSet> sets = UFFDA_TRY(recorded_sets(object, options));
  if (sets.empty()) return recorded;
  const WorkingSet* set = UFFDA_TRY(find_working_set(sets, object.name(), object.size(), 1));
  recorded.fill = UFFDA_TRY(prefetch_working_set(machine.main, *set));
  const Units units(machine.ram());
  const PrefetchTarget target{.size = object.size(), .folio_size = object.folio_size()};
  for (const FolioRange folios : recorded_folios(*set, target)) add_runs(machine, units, folios, recorded.runs);
  return recorded;
}

Result<std::unique_ptr<RecordingFile>> record(const Machine& machine, const std::string& file) {
  if (file.empty()) return nullptr;
  auto recorder = UFFDA_TRY(WorkingSetRecorder::create(*machine.main, "ram"));
  UFFDA_TRY_VOID(machine.main->observe(recorder));
  return RecordingFile::create(file, {recorder});
}

std::chrono::milliseconds since(TimePoint start) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start);
}

}  // namespace

Result<RestoreCounts> restore(const RestoreOptions& options) {
  const TimePoint start = Clock::now();
  Entry entry = UFFDA_TRY(Entry::open(options.qmp, Cancel(options.cancel)));  // forks: before the core has threads
  const auto core = UFFDA_TRY(Core::create(options.core));
  UFFDA_TRY_VOID(register_builtin_types(core->types()));
  const Machine machine = UFFDA_TRY(open_machine(*core, options.machine));
  const auto recording = UFFDA_TRY(record(machine, options.record));
  auto recorded = prefetch(machine, options);
  if (!recorded) {  // only a hint is lost
    log(LogLevel::warning, "{}: nothing is prefetched", recorded.error().message());
    recorded = Recorded{};
  }
  auto [way, stream] = UFFDA_TRY(entry.enter());
  auto push = UFFDA_TRY(RamPush::create(machine, std::move(stream), std::move(recorded->runs), Cancel(options.cancel)));
  UFFDA_TRY_VOID(way == Way::resumed ? push->resume() : push->start());
  entry.note_running();
  const auto to_run = since(start);
  const auto done = push->run();
  if (recording) UFFDA_TRY_VOID(recording->save());
  if (!done) return std::unexpected(done.error());
  UFFDA_TRY_VOID(wait_for_migration(entry.qmp(), "completed"));
  entry.complete();

  RestoreCounts counts = push->counts();
  counts.to_run = to_run;
  counts.total = since(start);
  counts.fetches = core->stats().fetches.load();
  counts.fetched = {core->stats().bytes_fetched.load()};
  return counts;
}

}  // namespace uffda::qemu
