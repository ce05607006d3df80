#include "mm/folio_states.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/thread.h"

namespace uffda {

ByteCount FolioStates::size_of(std::uint64_t folios) {
  return kPageSize + ByteCount{align_up(folios * sizeof(Word), kPageSize.value)};
}

Result<FolioStates> FolioStates::create(std::uint64_t folios) {
  return map(UFFDA_TRY(os::create_memfd("uffda-states", size_of(folios))), folios);
}

Result<FolioStates> FolioStates::map(os::UniqueFd fd, std::uint64_t folios) {
  os::MappedMemory memory = UFFDA_TRY(os::map_memory(size_of(folios), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get()));
  return FolioStates(std::move(fd), std::move(memory), folios);
}

Result<FolioStates> FolioStates::adopt(os::UniqueFd fd, std::uint64_t folios) {
  if (os::memory_size(fd.get()) != size_of(folios))
    return fail(Errc::invalid_argument, "the states that are kept are of memory of another size");
  return map(std::move(fd), folios);
}

FolioIndex FolioStates::next_known(FolioIndex from) const {
  if (from >= count_) return count_;
  const auto data = os::next_data(fd_.get(), {kPageSize.value + from * sizeof(Word)});
  if (!data) return count_;
  FolioIndex index = std::max(from, (data->value - kPageSize.value) / sizeof(Word));
  const FolioIndex page_end = align_up(index + 1, kPageSize.value / sizeof(Word));
  while (index < std::min(page_end, count_) && words_[index].load(std::memory_order_relaxed) == 0) ++index;
  return index == page_end ? next_known(index) : std::min(index, count_);
}

PageState FolioStates::recover(FolioIndex index) {
  const std::uint16_t old = words_[index].load(std::memory_order_relaxed);
  const auto state = std::to_underlying(adopted(state_of(old)));
  words_[index].store(static_cast<std::uint16_t>((old & (kApartBit | kAloneBit)) | state), std::memory_order_relaxed);
  return state_of(old);
}

FolioStates::Failures& FolioStates::failures() const { return *reinterpret_cast<Failures*>(memory_.bytes().data()); }

FolioStates::FolioStates(os::UniqueFd fd, os::MappedMemory memory, std::uint64_t count)
    : fd_(std::move(fd)),
      memory_(std::move(memory)),
      words_(reinterpret_cast<Word*>(memory_.bytes().data() + kPageSize.value)),
      count_(count) {
  static_assert(sizeof(Word) == 2 && Word::is_always_lock_free);
  static_assert(std::to_underlying(PageState::absent) == 0, "a fresh memfd is all absent");
}

std::optional<PageState> FolioStates::applied(FolioIndex index, PageEvent event, unsigned set, unsigned clear,
                                              std::uint16_t* before) {
  const bool unpinned = event == PageEvent::evict_started || event == PageEvent::writeback_started;
  preemption_point();
  Word& word = words_[index];
  std::uint16_t old = word.load(std::memory_order_acquire);
  while (true) {
    const Result<PageState> to = next(state_of(old), event);
    if (!to) return std::nullopt;
    if (unpinned && (old & kPinMask) != 0 && !canary(Canary::evicts_pinned)) return std::nullopt;
    if (event == PageEvent::writeback_started && (old & kWritebackBit) != 0) return std::nullopt;
    const auto updated = static_cast<std::uint16_t>(((old | set) & ~clear & ~kStateMask) | std::to_underlying(*to));
    if (!word.compare_exchange_weak(old, updated, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    if (before != nullptr) *before = old;
    return state_of(old);
  }
}

std::optional<bool> FolioStates::apply_apart(FolioIndex index, PageEvent event) {
  const unsigned set = event == PageEvent::written || event == PageEvent::supplied ? kApartBit : 0;
  const unsigned clear = event == PageEvent::lost ? kApartBit : 0;
  std::uint16_t before = 0;
  if (!applied(index, event, set, clear, &before)) return std::nullopt;
  return (before & kApartBit) != 0;
}

bool FolioStates::start_writeback(FolioIndex index) {
  return applied(index, PageEvent::writeback_started, kWritebackBit, 0, nullptr).has_value();
}

bool FolioStates::end_writeback(FolioIndex index, PageEvent event) {
  const std::optional<PageState> before = applied(index, event, 0, kWritebackBit, nullptr);
  constexpr auto kRest = static_cast<std::uint16_t>(~kWritebackBit);
  if (!before) words_[index].fetch_and(kRest, std::memory_order_acq_rel);  // somebody punched it meanwhile
  return event == PageEvent::written_back && before == PageState::awaiting_clean;
}

bool FolioStates::unwritten(FolioIndex index) const {
  const std::uint16_t word = words_[index].load(std::memory_order_acquire);
  return state_of(word) == PageState::dirty || (word & kWritebackBit) != 0;
}

bool FolioStates::pin(FolioIndex index) {
  preemption_point();
  Word& word = words_[index];
  std::uint16_t old = word.load(std::memory_order_acquire);
  while (is_present(state_of(old)) && (old & kPinMask) != kPinMask) {
    const auto pinned = static_cast<std::uint16_t>(old + kPinOne);
    if (word.compare_exchange_weak(old, pinned, std::memory_order_acq_rel, std::memory_order_acquire)) return true;
  }
  return false;
}

void FolioStates::unpin(FolioIndex index) {
  preemption_point();
  const std::uint16_t old = words_[index].fetch_sub(kPinOne, std::memory_order_release);
  UFFDA_ASSERT((old & kPinMask) != 0);
}

FolioRange FolioStates::pin_around(FolioIndex index, FolioRange window) {
  FolioIndex first = index;
  FolioIndex end = index + 1;
  while (first > window.first && pin(first - 1)) --first;
  while (end < window.end() && pin(end)) ++end;
  return {.first = first, .count = end - first};
}

FolioRange FolioStates::pin_first_run(FolioRange range) {
  for (FolioIndex index = range.first; index < range.end(); ++index) {
    if (pin(index)) return pin_around(index, {.first = index, .count = range.end() - index});
  }
  return {.first = range.end(), .count = 0};
}

void FolioStates::unpin(FolioRange run) {
  for (FolioIndex index = run.first; index < run.end(); ++index) unpin(index);
}

FolioRange FolioStates::run_of(PageState wanted, FolioIndex index, FolioRange window) const {
  FolioIndex first = index;
  FolioIndex end = index + 1;
  while (first > window.first && get(first - 1) == wanted) --first;
  while (end < window.end() && get(end) == wanted) ++end;
  return {.first = first, .count = end - first};
}

bool FolioStates::fetch_alone(FolioIndex index) const {
  return (words_[index].load(std::memory_order_relaxed) & kAloneBit) != 0;
}

void FolioStates::mark_fetch_alone(FolioIndex index) { words_[index].fetch_or(kAloneBit, std::memory_order_relaxed); }

bool FolioStates::mark_queued(FolioIndex index) {
  return (words_[index].fetch_or(kQueuedBit, std::memory_order_acq_rel) & kQueuedBit) != 0;
}

void FolioStates::unmark_queued(FolioIndex index) {
  constexpr auto kRest = static_cast<std::uint16_t>(~kQueuedBit);
  words_[index].fetch_and(kRest, std::memory_order_acq_rel);
}

}  // namespace uffda
