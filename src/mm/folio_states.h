// The states and pins of all folios of an object: two bytes a folio, behind one page of counts, in a memfd beside the
// page cache, so that a successor can adopt them.
//
// A word holds the state (bits 0-3), the fetch-alone mark (bit 4), the queued mark (bit 5), the apart mark (bit 6), the
// writeback mark (bit 7) and the number of pins (bits 8-15). A pin is taken only on a present folio and keeps it from
// being evicted; it is held from the check of a state to the end of the ioctl that follows from it, and never across a
// wait.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "mm/page_state.h"
#include "os/fd.h"
#include "os/memory.h"
#include "uffda/units.h"

namespace uffda {

class FolioStates {
 public:
  /// All folios absent. Errors: no_memory.
  static Result<FolioStates> create(std::uint64_t folios);
  /// Those of a server that died: each is as it was until recover() looks at it. Errors: invalid_argument (it is not of
  /// so many folios).
  static Result<FolioStates> adopt(os::UniqueFd fd, std::uint64_t folios);
  /// A folio of a dead server, from `from` on, that may be other than absent; count() if there is none.
  [[nodiscard]] FolioIndex next_known(FolioIndex from) const;
  /// Nobody has it pinned any more, no write of it is under way, and what was half done is not done. The state before.
  PageState recover(FolioIndex index);
  /// To find the same again.
  [[nodiscard]] int fd() const { return fd_.get(); }

  /// What else is kept with them: how often the source failed to store something, and how often somebody was told.
  struct Failures {
    std::atomic<std::uint64_t> all;
    std::atomic<std::uint64_t> told;
  };
  [[nodiscard]] Failures& failures() const;

  [[nodiscard]] PageState get(FolioIndex index) const {
    return state_of(words_[index].load(std::memory_order_acquire));
  }

  /// Changes the state of one folio as next() says. False if next() refuses, or if an eviction meets a pin; then
  /// nothing changed.
  bool apply(FolioIndex index, PageEvent event) { return change(index, event).has_value(); }
  /// The same; the state before.
  std::optional<PageState> change(FolioIndex index, PageEvent event) { return applied(index, event, 0, 0, nullptr); }

  /// Pins a present folio. False if it is not present (or 255 pins are on it).
  bool pin(FolioIndex index);
  /// Somebody holds a pin on it. False for a folio that does not exist.
  [[nodiscard]] bool pinned(FolioIndex index) const {
    return index < count_ && (words_[index].load(std::memory_order_acquire) & kPinMask) != 0;
  }
  void unpin(FolioIndex index);
  [[nodiscard]] unsigned pins(FolioIndex index) const {
    return (words_[index].load(std::memory_order_relaxed) & kPinMask) / kPinOne;
  }

  /// Pins the present folios of `window` that adjoin `index`, which the caller has pinned, and returns the run, `index`
  /// included.
  FolioRange pin_around(FolioIndex index, FolioRange window);
  /// Pins the first run of present folios in `range`. Empty if there is none.
  FolioRange pin_first_run(FolioRange range);
  void unpin(FolioRange run);

  /// The run of folios in state `wanted` in `window` that contains `index`. Without a lock: a snapshot.
  [[nodiscard]] FolioRange run_of(PageState wanted, FolioIndex index, FolioRange window) const;

  /// A folio whose neighbours' fetch failed as a whole is fetched by itself, so that exactly the folio that cannot be
  /// had is poisoned.
  [[nodiscard]] bool fetch_alone(FolioIndex index) const;
  void mark_fetch_alone(FolioIndex index);

  /// A mark for whoever evicts: on the first folio of a run that waits for its turn. True if it was there already.
  bool mark_queued(FolioIndex index);
  void unmark_queued(FolioIndex index);

  /// As apply(), and whether the folio was marked as apart before: its bytes are nowhere else, and it is not evicted.
  /// `written` and `supplied` set the mark, `lost` takes it away, in the same step as the state.
  std::optional<bool> apply_apart(FolioIndex index, PageEvent event);
  [[nodiscard]] bool is_apart(FolioIndex index) const {
    return (words_[index].load(std::memory_order_acquire) & kApartBit) != 0;
  }

  /// A Dirty folio that nobody has pinned, and of which no write is under way, is AwaitingClean, and a write of it is
  /// under way. False: it is no such folio.
  bool start_writeback(FolioIndex index);
  /// That write is under way no more; `event` happens if it can. Whether the folio became Clean.
  bool end_writeback(FolioIndex index, PageEvent event);
  /// It is Dirty, or a write of it is under way.
  [[nodiscard]] bool unwritten(FolioIndex index) const;

  [[nodiscard]] std::uint64_t count() const { return count_; }

 private:
  using Word = std::atomic<std::uint16_t>;
  static constexpr std::uint16_t kStateMask = 0x000F;
  static constexpr std::uint16_t kAloneBit = 0x0010;
  static constexpr std::uint16_t kQueuedBit = 0x0020;
  static constexpr std::uint16_t kApartBit = 0x0040;
  static constexpr std::uint16_t kWritebackBit = 0x0080;
  static constexpr std::uint16_t kPinOne = 0x0100;
  static constexpr std::uint16_t kPinMask = 0xFF00;

  FolioStates(os::UniqueFd fd, os::MappedMemory memory, std::uint64_t count);
  static ByteCount size_of(std::uint64_t folios);
  static Result<FolioStates> map(os::UniqueFd fd, std::uint64_t folios);
  std::optional<PageState> applied(FolioIndex index, PageEvent event, unsigned set, unsigned clear,
                                   std::uint16_t* before);
  static PageState state_of(std::uint16_t word) { return static_cast<PageState>(word & kStateMask); }

  os::UniqueFd fd_;
  os::MappedMemory memory_;
  Word* words_;
  std::uint64_t count_;
};

}  // namespace uffda
