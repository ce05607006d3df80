// The fetches of one object that are under way: one per range, however many wait for it.
//
// Bookkeeping only: no system call, no source, no lock of its own (the object's lock guards it), so it is tested
// without a kernel. Its room is fixed: when it is used up, add() and join() say so and the fault comes again later.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "uffda/deadline.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

class MemoryObject;

/// What a waiter hears about folios that it waits for.
enum class FolioNews : std::uint8_t {
  ready,     ///< they are cached, or (an object without a cache) their bytes come with the news
  retry,     ///< nothing is known: fault again
  poisoned,  ///< they cannot be had
};

/// Somebody who waits for folios of an object: an address space with blocked threads.
class FolioWaiter {
 public:
  virtual ~FolioWaiter() = default;
  /// News of `folios` of `object`. `base` is what the waiter said when it joined. `bytes` are the folios' contents,
  /// valid during the call, only for objects whose type has no cache. Threads: any; no lock of the object is held.
  virtual void folios_news(const MemoryObject& object, std::uint64_t base, FolioRange folios, FolioNews news,
                           std::span<const std::byte> bytes) = 0;
  /// The fetch that it has just had ready news of took `time`, from asking the source on. Threads: any.
  virtual void waited(Duration /*time*/) noexcept {}
};

/// Who waits, and for which of its mappings: `base` is the address that the object's first byte would have in that
/// mapping (it may wrap).
struct FolioWait {
  std::shared_ptr<FolioWaiter> waiter;
  std::uint64_t base = 0;
};

/// Why a range is fetched; the later ones never take the room of the earlier ones.
enum class FetchFor : std::uint8_t {
  demand,      ///< somebody waits
  ahead,       ///< a reader will soon be there
  background,  ///< prefetching of what is known to be wanted
};

struct FetchRequest {
  FolioRange range;
  std::span<std::byte> buffer;
  TimePoint started;
  Deadline deadline = Deadline::at({});
  bool in_use = false;
  bool background = false;  ///< a prefetch: see MemoryObject::prefetch
  bool warned = false;      ///< the operator was told that it takes long
  bool publishing = false;  ///< the answer is here and on its way into the cache: too late to give up
  bool abandoned = false;   ///< given up; the answer, when it comes, is thrown away
  bool stale = false;  ///< the range changed at the source after it was asked: the answer is thrown away, and who waits
                       ///< asks again

  static constexpr std::size_t kMaxWaits = 16;
  std::array<FolioWait, kMaxWaits> waits;
  std::size_t wait_count = 0;
  unsigned sleepers = 0;  ///< threads of this process that wait for it synchronously

  [[nodiscard]] bool wanted() const { return wait_count != 0 || sleepers != 0; }
};

class RequestTable {
 public:
  static constexpr std::size_t kMaxRequests = 128;  ///< 64 threads at once, and as much again ahead of them

  RequestTable() : requests_(std::make_unique<std::array<FetchRequest, kMaxRequests>>()) {}

  /// The live (not abandoned) request that covers `index`, or null.
  FetchRequest* find(FolioIndex index);
  /// Whether a source may still write to what it was given for `index`, given up or not.
  [[nodiscard]] bool lent(FolioIndex index) const;
  /// A new request for a range that no live request overlaps, or null if the table is full.
  FetchRequest* add(FolioRange range, std::span<std::byte> buffer, TimePoint now, Deadline deadline,
                    FetchFor purpose = FetchFor::demand);
  /// Adds who waits; the same waiter with the same base is there once. False if the request has no room for another.
  static bool join(FetchRequest& request, const FolioWait& wait);
  /// The request is over; its slot can be used again. Hands out its waiters.
  std::vector<FolioWait> finish(FetchRequest& request);
  /// The owner gave up on it, but its buffer still belongs to the source. Hands out its waiters.
  static std::vector<FolioWait> abandon(FetchRequest& request);

  /// All slots, free ones too (see in_use of each).
  std::span<FetchRequest> slots() { return *requests_; }
  [[nodiscard]] std::size_t in_use() const { return in_use_; }
  /// A source takes `most` requests at once.
  void set_most(std::size_t most) { most_ = std::clamp(most, std::size_t{1}, kMaxRequests); }
  [[nodiscard]] std::size_t most() const { return most_; }
  /// Whether another request is possible. Half of the room is for demand alone, and half of the rest is not for
  /// prefetching, so that demand always finds some.
  [[nodiscard]] bool room_for(FetchFor purpose) const;
  /// Prefetches that the source has not answered, and the folios that they are for.
  [[nodiscard]] std::size_t background() const { return background_; }
  [[nodiscard]] std::uint64_t background_folios() const { return background_folios_; }

 private:
  static std::vector<FolioWait> take_waits(FetchRequest& request);

  std::unique_ptr<std::array<FetchRequest, kMaxRequests>> requests_;
  std::size_t most_ = kMaxRequests;
  std::size_t in_use_ = 0;
  std::size_t background_ = 0;
  std::uint64_t background_folios_ = 0;
};

}  // namespace uffda
