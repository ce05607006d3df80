#include "server/fills.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>

#include "base/log.h"

namespace uffda {
namespace {

/// Exports of one source share an object: each object once, under its first name.
std::map<std::shared_ptr<MemoryObject>, std::string> objects_of(const Exports& exports) {
  std::map<std::shared_ptr<MemoryObject>, std::string> objects;
  for (const auto& [name, object] : exports.all()) objects.emplace(object, name);
  return objects;
}

std::string mib(ByteCount bytes) { return fmt::format("{:.1f} MiB", static_cast<double>(bytes.value) / (1 << 20)); }

std::string progress_text(const FillProgress& progress) {
  return fmt::format("populate: {} of {}, {} of it zero", mib(progress.done), mib(progress.wanted), mib(progress.zero));
}

/// A line that is written over on a terminal, whole lines elsewhere.
void tell_progress(const FillProgress& progress, bool terminal) {
  const bool ended = progress.end != FillEnd::running;
  const std::string text =
      ended ? fmt::format("{}: {}", progress_text(progress), to_string(progress.end)) : progress_text(progress);
  if (terminal) fmt::print(stderr, "\ruffda: {:<70}{}", text, ended ? "\n" : "");
  if (!terminal && ended) log(LogLevel::info, "{}", text);
  if (progress.left.value != 0)
    log(LogLevel::warning, "populate: {} bytes could not be had; who touches them asks again", progress.left.value);
  if (progress.end == FillEnd::memory)
    log(LogLevel::warning, "populate ends early, for the budget is near: --budget SIZE raises it");
}

/// Only a hint is lost.
void warn_unprefetched(const std::string& from, const Error& why) {
  log(LogLevel::warning, "{}: {}: nothing of it is prefetched", from, why.message());
}

}  // namespace

Result<std::unique_ptr<Fills>> Fills::start(const Exports& exports, const ServeOptions& options) {
  auto fills = std::make_unique<Fills>();
  // What an earlier run recorded is read before this one may write to the same file.
  if (!options.prefetch_path.empty()) {
    UFFDA_TRY_VOID(fills->prefetch(exports, options.prefetch_path));
  } else if (options.prefetch) {
    fills->prefetch_what_came_along(exports);
  }
  if (!options.record_path.empty()) UFFDA_TRY_VOID(fills->record(exports, options.record_path));
  if (options.populate) fills->populate(exports, options);
  return fills;
}

Result<void> Fills::record(const Exports& exports, const std::string& file) {
  std::vector<std::shared_ptr<WorkingSetRecorder>> recorders;
  for (const auto& [object, name] : objects_of(exports)) {
    recorders.push_back(UFFDA_TRY(WorkingSetRecorder::create(*object, name)));
    UFFDA_TRY_VOID(object->observe(recorders.back()));
  }
  recording_ = UFFDA_TRY(RecordingFile::create(file, std::move(recorders)));
  return {};
}

Result<void> Fills::prefetch(const Exports& exports, const std::string& file) {
  const std::vector<WorkingSet> sets = UFFDA_TRY(read_working_sets(file));
  const auto objects = objects_of(exports);
  for (const auto& [object, name] : objects) {
    const auto set = find_working_set(sets, name, object->size(), objects.size());
    if (!set) {
      warn_unprefetched(file, set.error());
      continue;
    }
    UFFDA_TRY_VOID(prefetch(object, **set));
  }
  return {};
}

void Fills::prefetch_what_came_along(const Exports& exports) {
  for (const auto& [object, name] : objects_of(exports)) {
    if (const auto done = prefetch_what_came_along(object); !done)
      warn_unprefetched(object->source().name(), done.error());
  }
}

Result<void> Fills::prefetch_what_came_along(const std::shared_ptr<MemoryObject>& object) {
  const std::vector<WorkingSet> sets = UFFDA_TRY(read_working_sets(object->source()));
  if (sets.empty()) return {};
  return prefetch(object, *UFFDA_TRY(find_working_set(sets, object->name(), object->size(), 1)));
}

Result<void> Fills::prefetch(const std::shared_ptr<MemoryObject>& object, const WorkingSet& set) {
  prefetches_.push_back({.object = object.get(), .fill = UFFDA_TRY(prefetch_working_set(object, set))});
  return {};
}

void Fills::populate(const Exports& exports, const ServeOptions& options) {
  std::vector<std::shared_ptr<MemoryObject>> objects;
  for (const auto& [object, name] : objects_of(exports)) objects.push_back(object);
  std::vector<BackgroundFill> first;
  first.reserve(prefetches_.size());
  for (const Prefetched& prefetched : prefetches_) first.push_back(prefetched.fill);
  const bool terminal = options.ready_fd < 0 && !options.quiet && ::isatty(STDERR_FILENO) == 1;
  FillOptions fill{.per_second = options.populate_rate,
                   .tell = [terminal](const FillProgress& progress) { tell_progress(progress, terminal); }};
  populate_ = populate_in_background(std::move(objects), std::move(fill), std::move(first));
}

Result<void> Fills::finish() { return recording_ ? recording_->save() : Result<void>{}; }

}  // namespace uffda
