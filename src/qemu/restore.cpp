#include "qemu/restore.h"

#include <fmt/format.h>
#include <poll.h>

#include <nlohmann/json.hpp>

#include "base/log.h"
#include "memtypes/builtin.h"
#include "monitors/background_fill.h"
#include "monitors/prefetch_plan.h"
#include "monitors/recording_file.h"
#include "qemu/channel.h"
#include "qemu/ram_push.h"

namespace uffda::qemu {
namespace {

constexpr Duration kNoticed = std::chrono::seconds(30);  // QEMU's part at the start and the end
constexpr int kAskEvery = 5;                             // ms

/// Waits until the migration has a state that `wanted` accepts.
template <typename Wanted>
Result<MigrationState> wait_for_state(Qmp& qmp, const Wanted& wanted) {
  const Deadline deadline = Deadline::after(kNoticed);
  for (;;) {
    MigrationState state = UFFDA_TRY(migration_state(qmp));
    if (wanted(state.status)) return state;
    if (state.status == "failed") return fail(Errc::io, fmt::format("QEMU's migration failed: {}", state.error));
    if (deadline.passed()) return fail(Errc::timed_out, fmt::format("QEMU's migration stays '{}'", state.status));
    (void)::poll(nullptr, 0, kAskEvery);
  }
}

/// How a machine can be had into this QEMU.
enum class Way : std::uint8_t { from_the_start, resumed };

Result<Way> way_into(Qmp& qmp) {
  const MigrationState state = UFFDA_TRY(migration_state(qmp));
  if (state.status.starts_with("postcopy")) {
    // It may not have noticed yet that its source is gone.
    UFFDA_TRY(wait_for_state(qmp, [](const std::string& status) { return status == "postcopy-paused"; }));
    return Way::resumed;
  }
  const auto status = UFFDA_TRY(qmp.execute("query-status"));
  if (text_of(status, "status") == "inmigrate" && state.status.empty()) return Way::from_the_start;
  if (text_of(status, "status") == "inmigrate" && state.status == "none") return Way::from_the_start;
  return fail(
      Errc::invalid_argument,
      fmt::format("this QEMU waits for no machine (it is '{}'): start one with the command line that the machine "
                  "was saved of, and -incoming defer",
                  text_of(status, "status")));
}

Result<os::UniqueFd> open_incoming(Qmp& qmp, Way way) {
  if (way == Way::resumed) return open_stream(qmp, "migrate-recover");
  UFFDA_TRY_VOID(check_capabilities(qmp, {"postcopy-ram", "return-path"}));
  const nlohmann::json on = {{"capability", "postcopy-ram"}, {"state", true}};
  UFFDA_TRY(qmp.execute("migrate-set-capabilities", {{"capabilities", {on}}}));
  return open_stream(qmp, "migrate-incoming");
}

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
  const auto core = UFFDA_TRY(Core::create(options.core));
  UFFDA_TRY_VOID(register_builtin_types(core->types()));
  const Machine machine = UFFDA_TRY(open_machine(*core, options.machine));
  const auto recording = UFFDA_TRY(record(machine, options.record));
  Qmp qmp = UFFDA_TRY(Qmp::connect(options.qmp));
  const Way way = UFFDA_TRY(way_into(qmp));
  auto recorded = prefetch(machine, options);
  if (!recorded) {  // only a hint is lost
    log(LogLevel::warning, "{}: nothing is prefetched", recorded.error().message());
    recorded = Recorded{};
  }
  auto push = UFFDA_TRY(
      RamPush::create(machine, UFFDA_TRY(open_incoming(qmp, way)), std::move(recorded->runs), options.cancel));
  UFFDA_TRY_VOID(way == Way::resumed ? push->resume() : push->start());
  const auto to_run = since(start);
  const auto done = push->run();
  if (recording) UFFDA_TRY_VOID(recording->save());
  if (!done) return std::unexpected(done.error());
  UFFDA_TRY(wait_for_state(qmp, [](const std::string& status) { return status == "completed"; }));

  RestoreCounts counts = push->counts();
  counts.to_run = to_run;
  counts.total = since(start);
  counts.fetches = core->stats().fetches.load();
  counts.fetched = {core->stats().bytes_fetched.load()};
  return counts;
}

}  // namespace uffda::qemu
