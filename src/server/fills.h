// What a server records and fetches of its own accord: --record, --prefetch, --populate, and the working
// sets that came with a source.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mm/memory_object.h"
#include "monitors/background_fill.h"
#include "monitors/recording_file.h"
#include "server/exports.h"
#include "server/serve.h"
#include "uffda/result.h"

namespace uffda {

/// Threads: any.
class Fills {
 public:
  /// Begins. Errors: those of the files; invalid_argument.
  static Result<std::unique_ptr<Fills>> start(const Exports& exports, const ServeOptions& options);

  /// Writes the recording: the last thing of a server. Errors: io.
  Result<void> finish();

  struct Prefetched {
    const MemoryObject* object;
    BackgroundFill fill;
  };
  [[nodiscard]] const std::vector<Prefetched>& prefetches() const { return prefetches_; }
  [[nodiscard]] const std::optional<BackgroundFill>& populate() const { return populate_; }
  [[nodiscard]] const RecordingFile* recording() const { return recording_.get(); }

 private:
  Result<void> record(const Exports& exports, const std::string& file);
  Result<void> prefetch(const Exports& exports, const std::string& file);
  void prefetch_what_came_along(const Exports& exports);
  Result<void> prefetch_what_came_along(const std::shared_ptr<MemoryObject>& object);
  Result<void> prefetch(const std::shared_ptr<MemoryObject>& object, const WorkingSet& set);
  void populate(const Exports& exports, const ServeOptions& options);

  std::unique_ptr<RecordingFile> recording_;
  std::vector<Prefetched> prefetches_;
  std::optional<BackgroundFill> populate_;
};

}  // namespace uffda
