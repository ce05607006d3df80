#include "monitors/recording_file.h"

#include <unistd.h>

#include "base/log.h"

namespace uffda {

Result<std::unique_ptr<RecordingFile>> RecordingFile::create(
    std::string file, std::vector<std::shared_ptr<WorkingSetRecorder>> recorders) {
  // A trial beside it: what an earlier run recorded there is not touched before there is something better.
  const std::string trial = file + ".trial";
  UFFDA_TRY_VOID(write_working_sets(trial, {}));
  (void)::unlink(trial.c_str());
  std::unique_ptr<RecordingFile> recording(new RecordingFile(std::move(file), std::move(recorders)));
  recording->thread_ = Thread([raw = recording.get()] { raw->save_now_and_then(); });
  return recording;
}

RecordingFile::~RecordingFile() {
  {
    const MutexLock lock(mutex_);
    ending_ = true;
  }
  ended_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Result<void> RecordingFile::save() {
  std::vector<WorkingSet> sets;
  sets.reserve(recorders_.size());
  for (const auto& recorder : recorders_) sets.push_back(recorder->snapshot());
  const MutexLock lock(save_mutex_);
  return write_working_sets(file_, sets);
}

std::uint64_t RecordingFile::runs() const {
  std::uint64_t runs = 0;
  for (const auto& recorder : recorders_) runs += recorder->runs();
  return runs;
}

void RecordingFile::save_now_and_then() {
  std::uint64_t saved = 0;
  bool said = false;
  while (true) {
    {
      const TimePoint next = Clock::now() + kSaveEvery;
      const MutexLock lock(mutex_);
      while (!ending_ && Clock::now() < next) ended_.wait_until(mutex_, next);
      if (ending_) return;
    }
    const std::uint64_t now = runs();
    if (now == saved) continue;
    saved = now;
    const Result<void> written = save();
    if (!written && !std::exchange(said, true)) log(LogLevel::warning, "{}", written.error().message());
  }
}

}  // namespace uffda
