// What of an address space outlives its server: its mappings and the messages that were read and not yet applied, in
// shared memory that a successor finds (DESIGN: takeover).
//
// Mappings are kept as a log of what changed them, because one change may touch many. A record counts once `head` says
// so; so it is there as a whole or not at all, whenever the server is killed. When a half of the log is full, the
// mappings as they are go to the other half, and `head` names that one.
//
// The kernel writes messages into `messages` itself: a server that is killed after it read one and before its effect is
// recorded leaves it there, and the successor applies it (pitfall 12). Each event makes one record. `head` as it was
// before the read tells how many of the batch have theirs.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>

#include "base/log.h"
#include "base/thread.h"
#include "os/kernel_abi.h"
#include "uffda/units.h"

namespace uffda {

/// One change of the list of mappings.
struct MappingRecord {
  enum class Kind : std::uint8_t {
    none,   ///< an event without effect on the mappings
    map,    ///< [start, start + length) shows `object` from `other` on
    unmap,  ///< [start, start + length)
    move,   ///< to `other`
    drop,   ///< what is copied in [start, start + length) is the kernel's
  };
  std::uint64_t start = 0;
  std::uint64_t length = 0;
  std::uint64_t other = 0;
  std::uint32_t object = 0;
  Kind kind = Kind::none;
  std::uint8_t sharing = 0;
  std::uint16_t reserved = 0;
};

/// Plain memory, all zeroes at first; no pointers. `fd` belongs to whoever uses the space, and is closed after `used`
/// is 0.
struct KeptSpace {
  // Of one half: twice the most mappings. In the simulation so few that a half is full now and then.
  static constexpr std::uint64_t kRecords = kSimulated ? 24 : std::uint64_t{1} << 17U;
  static constexpr std::size_t kMessages = kSimulated ? 8 : 32;

  std::atomic<std::uint32_t> used;
  std::int32_t fd;
  std::uint64_t features;
  std::array<std::uint8_t, 16> token;
  std::int32_t pid;       ///< of who handed it over; 0: nobody knows
  std::uint64_t process;  ///< its os::identity_of(): the pid may come again
  std::uint32_t forked;
  std::uint32_t number;                                  ///< for its name
  std::atomic<std::uint64_t> head;                       ///< kRecords + n: n records, in the second half
  std::uint64_t head_before;                             ///< the batch in `messages` was read
  alignas(64) std::array<uffd_msg, kMessages> messages;  ///< `event` is 0 where there is none
  alignas(4096) std::array<MappingRecord, 2 * kRecords> records;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && sizeof(MappingRecord) == 32);

/// The writer's and the reader's side. Threads: one at a time.
class MappingLog {
 public:
  explicit MappingLog(KeptSpace& space) : space_(&space) {}

  [[nodiscard]] KeptSpace& space() const { return *space_; }

  /// Room for at least one batch and one record more; if not, `mappings` go to the other half before anything else.
  [[nodiscard]] bool nearly_full() const { return count() + KeptSpace::kMessages + 1 >= KeptSpace::kRecords; }
  /// What is in the log is now `count` records, each made by `record_at`.
  template <typename RecordAt>
  void rewrite(std::uint64_t count, RecordAt&& record_at) {
    const std::uint64_t to = half() == 0 ? KeptSpace::kRecords : 0;
    for (std::uint64_t i = 0; i < count; ++i) space_->records[to + i] = record_at(i);
    preemption_point();
    space_->head.store(to + count, std::memory_order_release);
  }
  void append(const MappingRecord& record) {
    UFFDA_ASSERT(count() < KeptSpace::kRecords);
    const std::uint64_t at = space_->head.load(std::memory_order_relaxed);
    space_->records[at] = record;
    preemption_point();
    space_->head.store(at + 1, std::memory_order_release);
    preemption_point();
  }
  [[nodiscard]] std::span<const MappingRecord> records() const {
    return std::span(space_->records).subspan(half(), count());
  }

  /// Where the next messages are read to; all of them are 0.
  std::span<uffd_msg> begin_batch() {
    space_->head_before = space_->head.load(std::memory_order_relaxed);
    return space_->messages;
  }
  /// The effects of all `count` messages are recorded, or they have none.
  void end_batch(std::size_t count) {
    for (uffd_msg& message : std::span(space_->messages).first(count)) {
      std::atomic_ref(message.event).store(0, std::memory_order_release);
      preemption_point();
    }
  }
  /// How many events of the batch have their record.
  [[nodiscard]] std::uint64_t recorded() const {
    return space_->head.load(std::memory_order_relaxed) - space_->head_before;
  }

 private:
  [[nodiscard]] std::uint64_t half() const {
    return space_->head.load(std::memory_order_relaxed) < KeptSpace::kRecords ? 0 : KeptSpace::kRecords;
  }
  [[nodiscard]] std::uint64_t count() const { return space_->head.load(std::memory_order_relaxed) - half(); }

  KeptSpace* space_;
};

}  // namespace uffda
