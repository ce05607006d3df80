// An address space: the mappings of one process onto objects, and the userfaultfd that traps its faults.
//
// Local: this process; mappings are made here, there are no events, and reads may block. Remote: a process that handed
// us its userfaultfd; it makes and registers its mappings itself, and tells us of them; events keep our list true.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "mm/core.h"
#include "mm/fault_around.h"
#include "mm/kept_space.h"
#include "mm/memory_object.h"
#include "mm/request_table.h"
#include "mm/resolve.h"
#include "mm/uffd_context.h"
#include "os/userfault.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

/// What a mapping's writes are.
enum class Sharing : std::uint8_t {
  shared,           ///< not possible
  shared_writable,  ///< of the object: a folio that is mapped there may change at any time
  private_,         ///< of the mapping: it has pages of its own
  copied,  ///< of anonymous memory that begins with the object's bytes: once dropped it is zeroes, as such memory is
};

/// [start, start + length) shows an object from `offset` on.
struct Mapping {
  Address start;
  ByteCount length;
  ByteOffset offset;
  std::shared_ptr<MemoryObject> object;
  Sharing sharing = Sharing::shared;
  std::shared_ptr<UffdContext> monitor;  ///< who gets the faults in `armed`; null: nobody
  UffdModes armed;
  std::unique_ptr<FaultStreams> streams = std::make_unique<FaultStreams>();

  [[nodiscard]] Address end() const { return start + length; }
  /// Where the first byte of the object would be; may wrap.
  [[nodiscard]] std::uint64_t base() const { return start.value - offset.value; }
  [[nodiscard]] FolioIndex index_of(Address address) const;
  [[nodiscard]] Address address_of(FolioIndex index) const;
  /// The object's folios that it shows.
  [[nodiscard]] FolioRange folios() const;
  /// The part of it in [from, to), which overlap.
  [[nodiscard]] Mapping part(Address from, Address to) const;
  /// Whether its pages come from the object's cache and nowhere else.
  [[nodiscard]] bool shows_cache() const {
    return sharing != Sharing::private_ && sharing != Sharing::copied && object->cached();
  }
  /// Whether what is written there goes to the object's source: its clean folios are protected.
  [[nodiscard]] bool tracks_writes() const { return sharing == Sharing::shared_writable && object->writes_back(); }
};

class AddressSpace final : public FolioWaiter, public FolioMapper, public std::enable_shared_from_this<AddressSpace> {
 public:
  /// Takes the userfaultfd over. `name` is for messages.
  static std::shared_ptr<AddressSpace> create(std::shared_ptr<Core> core, std::unique_ptr<os::Userfault> userfault,
                                              std::string name);
  ~AddressSpace() override;
  AddressSpace(const AddressSpace&) = delete;
  AddressSpace& operator=(const AddressSpace&) = delete;

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] os::Userfault& userfault() { return *userfault_; }
  [[nodiscard]] const SpaceStats& stats() const { return stats_; }

  /// The range is mapped and registered, and shows `object` from `offset` on. Replaces what was known of the range.
  /// Requires: folio-aligned, the object's pages within it (a last part beyond the end of the object is fine).
  /// Errors: invalid_argument, no_memory (more than kMaxMappings).
  Result<void> attach(Address start, ByteCount length, std::shared_ptr<MemoryObject> object, ByteOffset offset,
                      Sharing sharing = Sharing::shared);
  /// The range is not ours any more. Who waits there faults again, and gets SIGBUS if it is registered still.
  void detach(Address start, ByteCount length);
  static constexpr std::size_t kMaxMappings = 65'536;
  /// Forgets all mappings. Its owner calls this when it is done: the last reference may be a waiter's, in a source's
  /// thread, which must not be the one that ends an object.
  void close();

  /// Resolves, starts resolving, or parks one fault. Threads: any. Takes as long as its system calls; never waits for a
  /// source. `message`, if it is known, tells a monitor why.
  void handle_fault(Address address, const uffd_msg* message = nullptr);
  enum class InlineOutcome : std::uint8_t { resolved, not_ours, sigbus };
  enum class Touch : std::uint8_t {
    load,
    store,
    store_protected,  ///< to a page that is mapped and write-protected
  };
  /// Resolves one fault in the thread that took it, waiting for the source if it must; sigbus if a monitor wants it.
  /// Nothing but atomics, locks and system calls where the source is immediate and the type has a page cache.
  InlineOutcome handle_inline(Address address, Touch touch = Touch::load);

  /// Reads what messages there are, without waiting, and handles them: events in the same exclusive step that reads
  /// them (pitfall 11), and the faults of a monitor too, then the other faults. Returns their number. Errors: gone (the
  /// address space has exited).
  Result<std::size_t> drain(std::span<uffd_msg> messages);
  /// The same, but again if somebody else is at it: a reader that waits for another one holds up both.
  Result<std::size_t> try_drain(std::span<uffd_msg> messages);

  /// The folios of `object` that it shows, by address of where.
  [[nodiscard]] std::vector<FolioRange> shown(const MemoryObject& object) const;
  enum class Supplied : std::uint8_t {
    done,
    later,  ///< not everywhere: the address space is changing; supply it again
  };
  /// Contents of an object without a cache, or (`poisoned`) the news that they cannot be had, for all mappings that
  /// show them. What is there already stays. Threads: any. `bytes` as in FolioWaiter::folios_news.
  Supplied supply(const MemoryObject& object, FolioRange folios, FolioNews news, std::span<const std::byte> bytes);

  /// Makes the faults of the range come again.
  void wake(Address start, ByteCount length);
  [[nodiscard]] bool alive() { return userfault_->alive(); }
  [[nodiscard]] std::size_t mapping_count() const;
  [[nodiscard]] bool maps(Address address) const;

  /// A child of the address space, with the same mappings, after a FORK event. Set by who runs loops; without it,
  /// children are refused.
  using ForkHook = std::function<void(std::shared_ptr<AddressSpace>)>;
  void on_fork(ForkHook hook) { fork_hook_ = std::move(hook); }

  /// Called before a thread gets SIGBUS because what `object` has at `address` cannot be had. Set before faults are
  /// served. Threads: any, with locks held: it takes none of the core's, and does not wait.
  using LostHook = std::function<void(const MemoryObject& object, Address address)>;
  void on_lost(LostHook hook) { lost_hook_ = std::move(hook); }

  /// From here on its mappings and messages are kept in `space`, which outlives this. Called once, before any other
  /// use. `of_child`: where a child by FORK is kept, called in the step that reads of it; null: not at all.
  using KeepChild = std::function<KeptSpace*(int fd, std::uint64_t features)>;
  void keep(KeptSpace& space, KeepChild of_child);
  [[nodiscard]] KeptSpace* kept() const;
  /// From here on nothing of it is kept any more. Where it was, or null.
  KeptSpace* forget_kept();
  /// Takes over what a dead server kept there, and makes every fault come again. Called after keep(), before faults are
  /// served. `object`: by its number, null if it is served no more. `known`: whether a FORK's userfaultfd is kept
  /// already.
  using ObjectByNumber = std::function<std::shared_ptr<MemoryObject>(std::uint32_t number)>;
  void adopt(const ObjectByNumber& object, const std::function<bool(int fd)>& known);

  void folios_news(const MemoryObject& object, std::uint64_t base, FolioRange folios, FolioNews news,
                   std::span<const std::byte> bytes) override;
  void waited(Duration time) noexcept override { stats_.missing.record(time); }
  Protected protect_folios(const MemoryObject& object, FolioRange folios) override;
  void unmap_folios(const MemoryObject& object, std::span<const FolioRange> folios) override;

 private:
  friend class UffdMonitor;  // a monitor's side of it

  AddressSpace(std::shared_ptr<Core> core, std::unique_ptr<os::Userfault> userfault, std::string name);

  Mapping* find_locked(Address address) const UFFDA_REQUIRES_SHARED(lock_);
  std::size_t first_ending_after_locked(Address address) const UFFDA_REQUIRES_SHARED(lock_);
  void cut_locked(Address start, Address end) UFFDA_REQUIRES(lock_);
  void insert_locked(Mapping mapping) UFFDA_REQUIRES(lock_);
  void remap_locked(Address from, Address to, ByteCount length) UFFDA_REQUIRES(lock_);
  /// What one exclusive step has read, and what is left to do for it without the lock.
  struct Drained {
    std::size_t count = 0;
    std::vector<std::shared_ptr<AddressSpace>> born;
    std::vector<std::unique_ptr<Mapping>> dropped;
  };
  Result<Drained> read_locked(std::span<uffd_msg> messages) UFFDA_REQUIRES(lock_);
  std::size_t handle_drained(Drained drained, std::span<const uffd_msg> messages) UFFDA_EXCLUDES(lock_);
  void apply_event_locked(const uffd_msg& message) UFFDA_REQUIRES(lock_);
  /// The range is dropped: what is copied there is not ours any more.
  void forget_copied_locked(Address start, Address end) UFFDA_REQUIRES(lock_);
  /// The kernel serves the range from now on, with zeroes.
  void leave_to_kernel_locked(Address start, Address end) UFFDA_REQUIRES(lock_);
  /// Memory that was left to the kernel, and when. The client goes on as soon as the event is read: what it moves, or
  /// forks, before the memory is left is trapped still, in its new place.
  struct Dropped {
    Address start;
    Address end;
    TimePoint when;
  };
  void note_dropped_locked(Address start, Address end) UFFDA_REQUIRES(lock_);
  [[nodiscard]] std::vector<Dropped> lately_dropped_locked(Address start, Address end) const
      UFFDA_REQUIRES_SHARED(lock_);
  /// Leaves what of that nothing is shown in to the kernel here, too.
  void leave_again_locked(const std::vector<Dropped>& dropped) UFFDA_REQUIRES(lock_);
  void tell_monitors_locked(const uffd_msg& message, Address start, Address end) UFFDA_REQUIRES(lock_);
  void tell_moved_locked(const uffd_msg& message) UFFDA_REQUIRES(lock_);
  void split_at_locked(Address address) UFFDA_REQUIRES(lock_);
  void merge_locked(Address start, Address end) UFFDA_REQUIRES(lock_);
  std::shared_ptr<AddressSpace> fork_locked(int fd) UFFDA_REQUIRES(lock_);
  void hand_over_born(std::vector<std::shared_ptr<AddressSpace>> born) UFFDA_EXCLUDES(lock_);
  void show_locked(Address start, ByteCount length, std::shared_ptr<MemoryObject> object, ByteOffset offset,
                   Sharing sharing) UFFDA_REQUIRES(lock_);
  /// Of every change of the list, after it. Does nothing where nothing is kept.
  void record_locked(const MappingRecord& record) UFFDA_REQUIRES(lock_);
  void rewrite_log_locked() UFFDA_REQUIRES(lock_);
  void replay_locked(const MappingRecord& record, const ObjectByNumber& object) UFFDA_REQUIRES(lock_);
  void replay_messages_locked(const std::function<bool(int fd)>& known) UFFDA_REQUIRES(lock_);

  /// Counts it here and in the core.
  void tally(Stats::Counter FaultStats::* counter, std::uint64_t n = 1);
  void tally_mapped(ByteCount mapped, ByteCount page);
  void wake_later(Address start, ByteCount length);

  /// What a fault looked like under the lock.
  enum class Look : std::uint8_t {
    done,
    absent,
    lost,
    broken,  ///< the type breaks its contract
    later,   ///< it cannot become dirty at the moment
    denied,  ///< it cannot become dirty
  };
  Look map_cached_locked(Mapping& mapping, FolioIndex index, Touch touch) UFFDA_REQUIRES_SHARED(lock_);
  /// A write to a page that is mapped: lets it be written to, if its folio may become dirty.
  Look allow_write_locked(const Mapping& mapping, FolioIndex index) UFFDA_REQUIRES_SHARED(lock_);
  /// Whether the folio, pinned, may be mapped for that. Only what is written to becomes dirty.
  static Admission admit_locked(const Mapping& mapping, FolioIndex index, Touch touch);
  /// SIGBUS for who writes to a folio that cannot become dirty.
  void deny_write_locked(const Mapping& mapping, FolioIndex index) UFFDA_REQUIRES_SHARED(lock_);
  static Touch touch_of(const uffd_msg* message);
  /// The pinned folios are about to be mapped: those that may be written there are Dirty from now on. Whether a monitor
  /// has protected the first.
  static os::Protect may_map_locked(const Mapping& mapping, FolioRange run, Touch touch = Touch::load);
  /// Shows cached folios, pinned, and wakes who waits for them: the cache itself, or a copy.
  Resolved show_cached_locked(const Mapping& mapping, FolioRange run, Mapped mapped, os::Protect protect)
      UFFDA_REQUIRES_SHARED(lock_);
  Resolved copy_cached_locked(const Mapping& mapping, FolioRange run) UFFDA_REQUIRES_SHARED(lock_);
  Supplied supply_locked(const Mapping& mapping, FolioRange folios, FolioNews news, std::span<const std::byte> pages)
      UFFDA_REQUIRES_SHARED(lock_);
  void map_news_locked(const Mapping& mapping, FolioRange folios) UFFDA_REQUIRES_SHARED(lock_);
  void copy_news_locked(const Mapping& mapping, FolioRange folios, FolioRange all, std::span<const std::byte> bytes)
      UFFDA_REQUIRES_SHARED(lock_);
  static UffdMode mode_of_locked(const Mapping& mapping, FolioIndex index, bool kernel_has_it);
  /// A fault of memory that a monitor has is queued in the same step that read it: who is woken later has no message on
  /// its way.
  bool told_monitor_locked(const uffd_msg& message) UFFDA_REQUIRES(lock_);
  bool goes_to_monitor_locked(Mapping& mapping, FolioIndex index, const uffd_msg& message, UffdContext::Told told_when)
      UFFDA_REQUIRES_SHARED(lock_);
  static bool is_monitors_locked(const Mapping& mapping, Address address, FolioIndex index, Touch touch);
  /// A thread waits at a folio that cannot be had.
  void poison_fault_locked(const Mapping& mapping, FolioIndex index) UFFDA_REQUIRES_SHARED(lock_);
  void poison_locked(const Mapping& mapping, FolioRange folios) UFFDA_REQUIRES_SHARED(lock_);
  void poison_unknown(Address address);
  /// Whether faults have come at a page in vain for longer than it takes to hear of a new mapping there.
  bool in_vain_for_long(Address page);
  /// The kernel says that there is a page, or that it has none to give: that shows when the fault comes again and
  /// again.
  void check_pool_locked(const Mapping& mapping, FolioIndex index) UFFDA_REQUIRES_SHARED(lock_);
  void forget_unknown(Address start, ByteCount length);

  std::shared_ptr<Core> core_;
  std::unique_ptr<os::Userfault> userfault_;
  std::string name_;
  ForkHook fork_hook_;
  LostHook lost_hook_;
  SpaceStats stats_;
  KeepChild keep_child_;
  std::atomic<bool> said_unknown_{false};
  std::atomic<bool> said_pool_{false};
  bool said_crowded_ UFFDA_GUARDED_BY(lock_) = false;
  static constexpr Duration kLately = std::chrono::seconds(1);
  static constexpr std::size_t kMaxDropped = 256;
  std::deque<Dropped> dropped_ UFFDA_GUARDED_BY(lock_);  // in the order of time
  static constexpr Duration kUnknownGrace = std::chrono::seconds(1);
  static constexpr std::size_t kMaxUnknown = 1024;
  struct Unknown {
    Address page;
    TimePoint since;
  };
  Mutex unknown_mutex_;
  std::vector<Unknown> unknown_ UFFDA_GUARDED_BY(unknown_mutex_);
  mutable SharedMutex lock_;
  std::vector<std::unique_ptr<Mapping>> mappings_ UFFDA_GUARDED_BY(lock_);   // by address, disjoint
  std::optional<MappingLog> log_ UFFDA_GUARDED_BY(lock_);                    // none: what is here dies with us
  std::vector<std::shared_ptr<AddressSpace>> born_ UFFDA_GUARDED_BY(lock_);  // children of the step at hand
  struct Moved {
    Address start;
    ByteCount length;
    std::shared_ptr<UffdContext> monitor;
  };
  std::vector<Moved> moved_ UFFDA_GUARDED_BY(lock_);  // by mremap: the UNMAP of where it was is still to come
  // What the step at hand cut away: dropped without the lock, for the end of an object waits for threads that may want
  // it.
  std::vector<std::unique_ptr<Mapping>> cut_ UFFDA_GUARDED_BY(lock_);
};

}  // namespace uffda
