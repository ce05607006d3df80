// Writeback: what was written to the folios of an object goes to its source.
//
//   Clean -> Dirty          before the write: until then the folio is protected wherever it is mapped. Only where the
//                           source has space for it, and not too much is dirty (admit)
//   Dirty -> AwaitingClean  nobody has it pinned, and no older write of it is under way. From here on: protected in
//                           every mapping, copied to a buffer, and the buffer handed to the source
//   AwaitingClean -> Clean  the source has it. Back to Dirty: the source failed, or somebody has written meanwhile
//
// So what is written during a writeback is either in its copy or makes the folio Dirty again. A folio has one write
// under way at most, even if the source is late, so that an old copy never overtakes a newer one.
//
// One thread an object: it writes what is dirty every few seconds, at once when room is short, and asks the source for
// space. Whoever syncs writes for himself.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "base/thread.h"
#include "mm/folio_states.h"
#include "mm/write_log.h"
#include "os/memory.h"
#include "uffda/deadline.h"
#include "uffda/page_source.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

class MemoryObject;

/// Mappings of an object, as the object knows them: those through which it is written, and those whose use can be seen.
class FolioMapper {
 public:
  virtual ~FolioMapper() = default;
  enum class Protected : std::uint8_t { done, again };
  /// Makes the next write to `folios` fault wherever this maps them. Threads: any; no lock of the object is held.
  virtual Protected protect_folios(const MemoryObject& object, FolioRange folios) = 0;
  /// Makes the next touch of `folios` fault, where this can take them out of page tables. They stay cached. Threads and
  /// locks as above.
  virtual void unmap_folios(const MemoryObject& object, std::span<const FolioRange> folios) = 0;
};

/// Whether a folio may become Dirty.
enum class Admission : std::uint8_t {
  granted,
  later,   ///< too much is dirty, or the source has not answered whether there is space: come again
  denied,  ///< there is no space for it, or no room for as long as a deadline
};

/// How much of an object may be dirty, what is, and how it is written. Threads: any, for everything public.
class Writeback final : public WriteOwner {
 public:
  static constexpr std::size_t kMostRuns = 16;  ///< under way at once
  static constexpr ByteCount kRegion = 1_MiB;   ///< for which space is asked at once
  static constexpr Duration kInterval = std::chrono::seconds(5);

  /// Errors: no_memory; unsupported (folios of 1 GiB).
  static Result<std::unique_ptr<Writeback>> create(MemoryObject& object);
  ~Writeback();  ///< the source has answered everything
  Writeback(const Writeback&) = delete;
  Writeback& operator=(const Writeback&) = delete;

  /// Writes what is dirty, until `deadline`, and ends the thread. Errors: as sync.
  Result<void> finish(Deadline deadline);

  /// The caller has the folio pinned. Granted: it is Dirty.
  Admission admit(FolioIndex index);
  /// It is Dirty since before a dead server's successor came. Before anybody else knows the object.
  void recover(FolioIndex index);
  /// Of a dead server's object nothing is written before all who have it mapped are known again: until then their pages
  /// cannot be protected. Before anybody else knows the object; and then once.
  void hold() { held_.store(true, std::memory_order_relaxed); }
  void release();
  /// It was Dirty, or being written, and somebody punched it.
  void note_lost() { dirty_.fetch_sub(1, std::memory_order_relaxed); }

  /// The source has other bytes in `range` than when it was asked for space.
  void forget_space(ByteRange range);
  /// Writes what of `range` is dirty at the call, waits for it, and flushes the source. `seen`: how many failures the
  /// caller has been told of, failures_told() at first; a failure since then is told now, whoever it met. Errors: what
  /// the source said, timed_out.
  Result<void> sync(ByteRange range, Deadline deadline, std::uint64_t& seen);
  /// How many failures somebody has been told of: who comes now need not hear of them.
  [[nodiscard]] std::uint64_t failures_told() UFFDA_EXCLUDES(mutex_);
  /// Room is short: what is dirty is written now.
  void kick();
  /// A log of what is written from now on; one at a time. It lasts until end_log(), and is valid for as long as this.
  /// Errors: busy, timed_out.
  Result<WriteLog*> start_log(Deadline deadline) UFFDA_EXCLUDES(mutex_);
  void end_log() UFFDA_EXCLUDES(mutex_);
  /// Folios that the source does not have.
  [[nodiscard]] std::uint64_t dirty() const { return dirty_.load(std::memory_order_relaxed); }

  void written_back(void* request, Result<void> result) noexcept override;

 private:
  /// A run of folios that is being written.
  struct Run {
    FolioRange folios;
    std::span<std::byte> buffer;
    std::uint64_t id = 0;  ///< in the order of their start
    Deadline deadline = Deadline::at({});
    bool in_use = false;
    bool late = false;  ///< its folios are Dirty again, and wait for the answer
  };
  enum class Space : std::uint8_t { unknown, asked, reserved, refused };

  Writeback(MemoryObject& object, os::MappedMemory buffers, std::size_t runs, ByteCount buffer);

  void run_thread();
  void reserve_asked();
  void write_all();
  void expire_late() UFFDA_EXCLUDES(mutex_);
  Admission ask_for_space(FolioIndex index);
  bool throttled_too_long() UFFDA_EXCLUDES(mutex_);

  [[nodiscard]] FolioRange folios_of(std::uint64_t chunk) const;
  [[nodiscard]] std::uint64_t next_dirty_chunk(std::uint64_t from, std::uint64_t end) UFFDA_EXCLUDES(mutex_);
  [[nodiscard]] std::uint64_t dirty_mask(FolioRange folios) const;
  void mark_chunk(FolioIndex index);
  void note_written(FolioIndex index);
  void settle_locked(std::uint64_t chunk) UFFDA_REQUIRES(mutex_);
  Result<void> write_folios(FolioRange folios, Deadline deadline);
  FolioRange claim(FolioRange range);
  Run* take_run(Deadline deadline) UFFDA_EXCLUDES(mutex_);
  Result<FolioRange> write_first(FolioRange range, Deadline deadline);
  Result<void> copy_out(const Run& run, Deadline deadline);
  void end_run(Run& run, const Result<void>& result) UFFDA_EXCLUDES(mutex_);
  enum class Failed : std::uint8_t { write, flush };
  /// Whether it should be said.
  bool note_failure_locked(const Error& error, Failed what) UFFDA_REQUIRES(mutex_);
  void say_failure(const Error& error) const;
  Result<void> tell_failures(std::uint64_t& seen) UFFDA_EXCLUDES(mutex_);
  Result<void> flush(Deadline deadline) UFFDA_EXCLUDES(mutex_);
  Result<void> wait_answered(std::uint64_t last, Deadline deadline) UFFDA_EXCLUDES(mutex_);

  MemoryObject& object_;
  FolioStates& states_;
  FolioStates::Failures& failures_;  // changed under the lock
  const os::MappedMemory buffers_;
  const std::uint64_t run_folios_;    // at most, in one run
  const std::uint64_t chunk_folios_;  // that one bit of dirty_chunks_ stands for
  const std::uint64_t dirty_limit_;
  const bool reserves_;
  std::atomic<bool> held_{false};
  std::atomic<std::uint64_t> dirty_{0};
  // A bit is set after a folio of the chunk became Dirty, and taken away under the lock when all are clean.
  std::vector<std::atomic<std::uint64_t>> dirty_chunks_;
  std::vector<std::atomic<Space>> space_;
  std::atomic<WriteLog*> log_{nullptr};  // kept_log_, while somebody reads it

  Mutex mutex_;
  CondVar changed_;  // a run has ended
  CondVar wanted_;   // the thread has something to do
  std::array<Run, kMostRuns> runs_ UFFDA_GUARDED_BY(mutex_);
  std::uint64_t next_id_ UFFDA_GUARDED_BY(mutex_) = 1;
  bool flushing_ UFFDA_GUARDED_BY(mutex_) = false;  // one at a time
  std::optional<Error> last_failure_ UFFDA_GUARDED_BY(mutex_);
  Duration back_off_ UFFDA_GUARDED_BY(mutex_){};
  TimePoint retry_at_ UFFDA_GUARDED_BY(mutex_);
  TimePoint said_at_ UFFDA_GUARDED_BY(mutex_);
  TimePoint throttled_since_ UFFDA_GUARDED_BY(mutex_);
  std::unique_ptr<WriteLog> kept_log_ UFFDA_GUARDED_BY(mutex_);  // once made: who notes in it holds no lock
  bool logged_ UFFDA_GUARDED_BY(mutex_) = false;                 // somebody has it
  bool kicked_ UFFDA_GUARDED_BY(mutex_) = false;
  bool space_asked_ UFFDA_GUARDED_BY(mutex_) = false;
  bool stopping_ UFFDA_GUARDED_BY(mutex_) = false;
  Thread thread_;
};

}  // namespace uffda
