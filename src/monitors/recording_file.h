// The file of a recording, kept up to date while the run goes on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/thread.h"
#include "monitors/working_set_recorder.h"

namespace uffda {

/// Writes what the recorders have every kSaveEvery, if anything is new, so that of a run that is killed only the last
/// moments are missing; and at the end. Threads: any.
class RecordingFile {
 public:
  static constexpr Duration kSaveEvery = std::chrono::seconds(2);

  /// Errors: permission_denied, not_found, io (the file cannot be written: found out now, not at the end).
  static Result<std::unique_ptr<RecordingFile>> create(std::string file,
                                                       std::vector<std::shared_ptr<WorkingSetRecorder>> recorders);
  ~RecordingFile();  ///< without a last save
  RecordingFile(const RecordingFile&) = delete;
  RecordingFile& operator=(const RecordingFile&) = delete;

  /// Writes what there is now. Errors: as write_working_sets.
  Result<void> save() UFFDA_EXCLUDES(save_mutex_);
  [[nodiscard]] std::uint64_t runs() const;

 private:
  RecordingFile(std::string file, std::vector<std::shared_ptr<WorkingSetRecorder>> recorders)
      : file_(std::move(file)), recorders_(std::move(recorders)) {}
  void save_now_and_then();

  const std::string file_;
  const std::vector<std::shared_ptr<WorkingSetRecorder>> recorders_;
  Mutex save_mutex_;  // one at a time
  Mutex mutex_;
  CondVar ended_;
  bool ending_ UFFDA_GUARDED_BY(mutex_) = false;
  Thread thread_;
};

}  // namespace uffda
