// A disk that forgets when the power goes: a layer over a writable source of which only what was completed before a
// flush() that has returned is safe. Of the rest a loss of power leaves nothing, some writes, some of their sectors
// (512 bytes), or all.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "uffda/page_source.h"

namespace uffda::test {

/// The power of one disk. Threads: any.
class Power {
 public:
  static constexpr std::uint64_t kSector = 512;
  enum class Leaves : std::uint8_t { nothing, some_writes, some_sectors, everything };

  /// `stored`: what the disk holds. The power goes at step `lost_at`: each start and end of a write or a flush is one.
  /// What is left then follows from `seed`.
  Power(std::vector<std::byte> stored, std::uint64_t lost_at, std::uint64_t seed);

  /// From then on writes are dropped, though they are said to be stored, and flushes fail.
  [[nodiscard]] bool lost() const { return lost_.load(std::memory_order_acquire); }
  /// Flushes do not fail any more: whoever closes the source need not try again.
  void end_quietly();
  /// When the source is gone: the file that it wrote to becomes what the loss of power has left of it. How many sectors
  /// changed by that.
  std::uint64_t settle(const std::string& path);

  // For the layer.
  /// A number for a write that is about to start; 0: it is dropped.
  std::uint64_t start_write(ByteOffset offset, std::span<const std::byte> bytes);
  void end_write(std::uint64_t number, bool stored);
  /// The writes that the flush is for: those that ended before it.
  std::vector<std::uint64_t> start_flush();
  Result<void> end_flush(const std::vector<std::uint64_t>& writes, const Result<void>& flushed);

 private:
  struct Write {
    std::uint64_t number;
    std::uint64_t offset;
    std::vector<std::byte> bytes;
    bool ended = false;
  };
  bool step_locked() UFFDA_REQUIRES(mutex_);
  [[nodiscard]] bool survives(Leaves leaves, bool whole_write);

  const std::uint64_t lost_at_;
  std::mt19937_64 random_;
  std::atomic<bool> lost_{false};
  Mutex mutex_;
  std::vector<std::byte> safe_ UFFDA_GUARDED_BY(mutex_);
  std::deque<Write> unsafe_ UFFDA_GUARDED_BY(mutex_);  // in the order of their start
  std::uint64_t steps_ UFFDA_GUARDED_BY(mutex_) = 0;
  std::uint64_t writes_ UFFDA_GUARDED_BY(mutex_) = 0;
  bool ends_quietly_ UFFDA_GUARDED_BY(mutex_) = false;
};

/// `inner` as it is with that power.
std::unique_ptr<PageSource> powered(std::unique_ptr<PageSource> inner, std::shared_ptr<Power> power);

}  // namespace uffda::test
